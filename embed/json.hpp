// JSON, as far as a model archive uses it: read strictly, with a limit on depth.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace marsmith {

struct BadJson : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Json {
  using List = std::vector<Json>;
  using Object = std::map<std::string, Json>;
  std::variant<std::nullptr_t, bool, double, std::string, List, Object> value = nullptr;

  // Of an object the value under a key, of a list that at a place; throws BadJson where there is none.
  const Json& at(const std::string& key) const;
  const Json& at(std::size_t place) const;
  bool has(const std::string& key) const;
  const std::string& text() const;
  long whole() const;
  const Object& object() const;
};

Json parse_json(std::string_view text);

// The text as a JSON string, with its quotes.
std::string quoted(const std::string& text);

}  // namespace marsmith
