#include "symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <vector>

namespace dit::simt {

namespace {

template <typename T>
std::vector<T> readArray(std::ifstream& file, uint64_t offset, uint64_t bytes) {
  std::vector<T> values(bytes / sizeof(T));
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(T)));
  return values;
}

// The mangled name of the function at this distance from where the file is mapped.
std::string symbolAt(const char* path, uint64_t distance) {
  std::ifstream file(path, std::ios::binary);
  const auto header = readArray<Elf64_Ehdr>(file, 0, sizeof(Elf64_Ehdr));
  if (!file) return "";
  const auto sections = readArray<Elf64_Shdr>(file, header[0].e_shoff,
                                              uint64_t{header[0].e_shnum} * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB) continue;
    const Elf64_Shdr& strings = sections[section.sh_link];
    const auto names = readArray<char>(file, strings.sh_offset, strings.sh_size);
    for (const Elf64_Sym& symbol : readArray<Elf64_Sym>(file, section.sh_offset, section.sh_size)) {
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_value == distance) {
        return &names[symbol.st_name];
      }
    }
  }
  return "";
}

}  // namespace

std::string functionName(const void* function) {
  Dl_info info = {};
  if (dladdr(function, &info) == 0) return "a kernel";
  const auto distance = static_cast<uint64_t>(static_cast<const char*>(function) -
                                              static_cast<const char*>(info.dli_fbase));
  const std::string symbol = symbolAt(info.dli_fname, distance);
  int status = 0;
  char* const plain = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? plain : symbol.empty() ? "a kernel" : symbol;
  std::free(plain);
  for (const std::string& noise :
       {std::string("(anonymous namespace)::"), std::string("dit::cuda::"), std::string("dit::"),
        std::string("void ")}) {
    for (size_t at; (at = name.find(noise)) != std::string::npos;) name.erase(at, noise.size());
  }
  // Without the parameters: up to the parenthesis that belongs to no template argument.
  int depth = 0;
  for (size_t i = 0; i < name.size(); i++) {
    if (name[i] == '<') depth++;
    if (name[i] == '>') depth--;
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

}  // namespace dit::simt
