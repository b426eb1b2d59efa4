#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>

#include "harness.h"

namespace dit::test {

// A file that goes away with its owner.
struct TemporaryFile {
  explicit TemporaryFile(const Test& test)
      : path(std::string(std::getenv("TMPDIR") ? std::getenv("TMPDIR") : "/tmp") +
             "/dit_native_test_" + std::to_string(std::hash<std::string>()(test.name())) + "_" +
             std::to_string(reinterpret_cast<uintptr_t>(this))) {}
  ~TemporaryFile() { std::remove(path.c_str()); }
  void write(const void* data, size_t bytes) const {
    std::ofstream(path, std::ios::binary)
        .write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  }
  std::string path;
};

}  // namespace dit::test
