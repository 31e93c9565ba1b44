#include "json.hpp"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>

namespace marsmith {
namespace {

constexpr int kDeepest = 64;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = any(0);
    skip_space();
    if (at_ != text_.size()) fail("something after its end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw BadJson("not JSON: " + std::string(what) + " at byte " + std::to_string(at_));
  }

  char peek() {
    skip_space();
    if (at_ == text_.size()) fail("it ends too early");
    return text_[at_];
  }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  void expect(char wanted) {
    if (peek() != wanted) fail("an unexpected character");
    ++at_;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json any(int depth) {
    if (depth > kDeepest) fail("nested too deeply");
    switch (peek()) {
      case '{': return {object(depth)};
      case '[': return {list(depth)};
      case '"': return {string()};
      default: break;
    }
    if (take("null")) return {nullptr};
    if (take("true")) return {true};
    if (take("false")) return {false};
    return {number()};
  }

  Json::Object object(int depth) {
    Json::Object result;
    expect('{');
    if (peek() == '}') return ++at_, result;
    while (true) {
      if (peek() != '"') fail("a key that is no string");
      std::string key = string();
      expect(':');
      result.insert_or_assign(std::move(key), any(depth + 1));
      if (peek() != ',') break;
      ++at_;
    }
    expect('}');
    return result;
  }

  Json::List list(int depth) {
    Json::List result;
    expect('[');
    if (peek() == ']') return ++at_, result;
    while (true) {
      result.push_back(any(depth + 1));
      if (peek() != ',') break;
      ++at_;
    }
    expect(']');
    return result;
  }

  double number() {
    double value = 0;
    const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
    if (error != std::errc() || !std::isfinite(value)) fail("an unexpected character");
    at_ = static_cast<std::size_t>(end - text_.data());
    return value;
  }

  std::string string() {
    std::string result;
    expect('"');
    while (true) {
      if (at_ == text_.size()) fail("a string without end");
      const char one = text_[at_++];
      if (one == '"') return result;
      if (static_cast<unsigned char>(one) < 0x20) fail("a control character in a string");
      if (one != '\\') {
        result += one;
        continue;
      }
      escape(result);
    }
  }

  void escape(std::string& result) {
    if (at_ == text_.size()) fail("a string without end");
    const char kind = text_[at_++];
    constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    if (const auto place = letters.find(kind); place != std::string_view::npos) {
      result += meanings[place];
      return;
    }
    if (kind != 'u') fail("an unknown escape");
    std::uint32_t code = four_digits();
    if (code >= 0xd800 && code < 0xdc00 && take("\\u")) code = 0x10000 + ((code - 0xd800) << 10) + (four_digits() & 0x3ff);
    append_utf8(result, code);
  }

  std::uint32_t four_digits() {
    std::uint32_t code = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) fail("an unknown escape");
    at_ += 4;
    return code;
  }

  static void append_utf8(std::string& result, std::uint32_t code) {
    if (code < 0x80) {
      result += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr unsigned char first[] = {0, 0xc0, 0xe0, 0xf0};
    result += static_cast<char>(first[more] | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) result += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3f));
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

template <typename T>
const T& as(const Json& json, const char* what) {
  if (const T* value = std::get_if<T>(&json.value)) return *value;
  throw BadJson(std::string("expected ") + what);
}

}  // namespace

Json parse_json(std::string_view text) { return Parser(text).whole(); }

const Json& Json::at(const std::string& key) const {
  const auto& all = object();
  const auto found = all.find(key);
  if (found == all.end()) throw BadJson("no key " + key);
  return found->second;
}

const Json& Json::at(std::size_t place) const {
  const auto& all = as<List>(*this, "a list");
  if (place >= all.size()) throw BadJson("a list that is too short");
  return all[place];
}

bool Json::has(const std::string& key) const { return object().count(key) != 0; }

const std::string& Json::text() const { return as<std::string>(*this, "text"); }

long Json::whole() const {
  const double value = as<double>(*this, "a number");
  if (value != std::floor(value) || std::abs(value) > 1e9) throw BadJson("expected a whole number");
  return static_cast<long>(value);
}

const Json::Object& Json::object() const { return as<Object>(*this, "an object"); }

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char one : text) {
    if (one == '"' || one == '\\') {
      result += '\\';
      result += one;
    } else if (static_cast<unsigned char>(one) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(one));
      result += escape;
    } else {
      result += one;
    }
  }
  return result + '"';
}

}  // namespace marsmith
