// A model archive, read in place: a zip whose members are stored, as marsmith writes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace marsmith {

// The archive, or something in it, is not what it should be.
struct BadArchive : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Maps the file into memory and reads its directory; every offset and size in it is checked before it is used.
class Archive {
 public:
  explicit Archive(const std::string& path);
  ~Archive();
  Archive(const Archive&) = delete;
  Archive& operator=(const Archive&) = delete;

  bool has(const std::string& name) const { return members_.count(name) != 0; }

  std::vector<std::string> names() const;

  // The bytes of a member, checked against its CRC-32; they live as long as the archive.
  std::string_view member(const std::string& name) const;

 private:
  struct Entry {
    std::uint64_t offset;
    std::uint64_t size;
    std::uint32_t crc;
  };

  void read_directory();
  std::string_view bytes(std::uint64_t offset, std::uint64_t size) const;
  std::uint64_t number(std::uint64_t offset, int width) const;
  std::size_t end_record() const;
  void read_entry(std::uint64_t& place);
  std::uint64_t content_offset(std::uint64_t header, const std::string& name) const;

  const char* data_ = nullptr;
  std::size_t size_ = 0;
  std::map<std::string, Entry> members_;
};

}  // namespace marsmith
