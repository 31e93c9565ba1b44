#include "archive.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace marsmith {
namespace {

constexpr std::uint32_t kEndRecord = 0x06054b50, kEnd64Record = 0x06064b50, kEnd64Locator = 0x07064b50;
constexpr std::uint32_t kDirectoryEntry = 0x02014b50, kLocalHeader = 0x04034b50;
constexpr std::uint64_t kUnset32 = 0xffffffff, kUnset16 = 0xffff;
constexpr std::size_t kEndRecordSize = 22, kLocatorSize = 20, kLongestComment = 65535;

std::uint32_t crc32(std::string_view bytes) {
  static const auto table = [] {
    std::array<std::array<std::uint32_t, 256>, 8> made{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (0xedb88320u & (0u - (value & 1u)));
      made[0][i] = value;
    }
    for (std::size_t slice = 1; slice < 8; ++slice) {
      for (std::size_t i = 0; i < 256; ++i) {
        made[slice][i] = (made[slice - 1][i] >> 8) ^ made[0][made[slice - 1][i] & 0xff];
      }
    }
    return made;
  }();
  const auto* at = reinterpret_cast<const unsigned char*>(bytes.data());
  const auto* end = at + bytes.size();
  std::uint32_t crc = 0xffffffff;
  for (; end - at >= 8; at += 8) {
    const std::uint32_t low = crc ^ (at[0] | at[1] << 8 | at[2] << 16 | static_cast<std::uint32_t>(at[3]) << 24);
    crc = table[7][low & 0xff] ^ table[6][(low >> 8) & 0xff] ^ table[5][(low >> 16) & 0xff] ^ table[4][low >> 24] ^
          table[3][at[4]] ^ table[2][at[5]] ^ table[1][at[6]] ^ table[0][at[7]];
  }
  for (; at != end; ++at) crc = table[0][(crc ^ *at) & 0xff] ^ (crc >> 8);
  return ~crc;
}

}  // namespace

Archive::Archive(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (file < 0 || ::fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0) {
    if (file >= 0) ::close(file);
    throw BadArchive(path + ": no such file, or nothing in it");
  }
  size_ = static_cast<std::size_t>(status.st_size);
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
  ::close(file);
  if (mapped == MAP_FAILED) throw BadArchive(path + ": it cannot be mapped into memory");
  data_ = static_cast<const char*>(mapped);
  try {
    read_directory();
  } catch (const BadArchive& error) {
    ::munmap(mapped, size_);
    throw BadArchive(path + ": " + error.what());
  }
}

Archive::~Archive() { ::munmap(const_cast<char*>(data_), size_); }

std::vector<std::string> Archive::names() const {
  std::vector<std::string> result;
  for (const auto& [name, entry] : members_) result.push_back(name);
  return result;
}

std::string_view Archive::member(const std::string& name) const {
  const auto found = members_.find(name);
  if (found == members_.end()) throw BadArchive("it has no member " + name);
  const std::string_view content = bytes(found->second.offset, found->second.size);
  if (crc32(content) != found->second.crc) throw BadArchive(name + " is damaged: its CRC-32 is another");
  return content;
}

std::string_view Archive::bytes(std::uint64_t offset, std::uint64_t size) const {
  if (offset > size_ || size > size_ - offset) throw BadArchive("it is truncated, or lies about where things are");
  return {data_ + offset, static_cast<std::size_t>(size)};
}

// Numbers in a zip are little-endian.
std::uint64_t Archive::number(std::uint64_t offset, int width) const {
  const std::string_view raw = bytes(offset, static_cast<std::uint64_t>(width));
  std::uint64_t value = 0;
  for (int i = width - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(raw[static_cast<std::size_t>(i)]);
  return value;
}

std::size_t Archive::end_record() const {
  if (size_ < kEndRecordSize) throw BadArchive("it is too short for a zip");
  const std::size_t last = size_ - kEndRecordSize;
  for (std::size_t back = 0; back <= std::min(last, kLongestComment); ++back) {
    if (number(last - back, 4) == kEndRecord) return last - back;
  }
  throw BadArchive("it is no zip: the end of its directory is missing");
}

void Archive::read_directory() {
  const std::size_t end = end_record();
  std::uint64_t count = number(end + 10, 2), place = number(end + 16, 4);
  if (count == kUnset16 || place == kUnset32) {
    if (end < kLocatorSize || number(end - kLocatorSize, 4) != kEnd64Locator) throw BadArchive("its zip64 part is broken");
    const std::uint64_t record = number(end - kLocatorSize + 8, 8);
    if (number(record, 4) != kEnd64Record) throw BadArchive("its zip64 part is broken");
    count = number(record + 32, 8);
    place = number(record + 48, 8);
  }
  // Every entry takes its place in the file, so that a count that lies ends at the end of the file.
  for (std::uint64_t i = 0; i < count; ++i) read_entry(place);
}

void Archive::read_entry(std::uint64_t& place) {
  if (number(place, 4) != kDirectoryEntry) throw BadArchive("its directory is broken");
  const std::uint64_t flags = number(place + 8, 2), method = number(place + 10, 2);
  const auto crc = static_cast<std::uint32_t>(number(place + 16, 4));
  std::uint64_t packed = number(place + 20, 4), size = number(place + 24, 4), header = number(place + 42, 4);
  const std::uint64_t name_size = number(place + 28, 2), extra_size = number(place + 30, 2);
  const std::string name(bytes(place + 46, name_size));
  std::uint64_t extra = place + 46 + name_size;
  const std::uint64_t extra_end = extra + extra_size;
  while (extra + 4 <= extra_end) {
    const std::uint64_t kind = number(extra, 2), length = number(extra + 2, 2);
    if (kind == 1) {
      std::uint64_t field = extra + 4;
      for (std::uint64_t* value : {&size, &packed, &header}) {
        if (*value == kUnset32) {
          if (field + 8 > extra + 4 + length) throw BadArchive("its zip64 part is broken");
          *value = number(field, 8);
          field += 8;
        }
      }
    }
    extra += 4 + length;
  }
  place = extra_end + number(place + 32, 2);
  if (!name.empty() && name.back() == '/') return;
  if ((flags & 1) != 0 || method != 0 || packed != size) {
    throw BadArchive(name + " is compressed or encrypted; `marsmith repack` stores every member");
  }
  const Entry entry{content_offset(header, name), size, crc};
  bytes(entry.offset, entry.size);
  if (!members_.emplace(name, entry).second) throw BadArchive("two of its members are called " + name);
}

std::uint64_t Archive::content_offset(std::uint64_t header, const std::string& name) const {
  if (number(header, 4) != kLocalHeader) throw BadArchive("its directory points to where no member is");
  const std::uint64_t name_size = number(header + 26, 2), extra_size = number(header + 28, 2);
  if (bytes(header + 30, name_size) != name) throw BadArchive("its directory and the member " + name + " disagree");
  return header + 30 + name_size + extra_size;
}

}  // namespace marsmith
