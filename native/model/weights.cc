#include "model/weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>

#include "core/rng.h"

namespace dit {

namespace {

std::string systemError() { return std::strerror(errno); }

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_;
};

// A file in memory, read-only.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path)
      : path_(path), fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    DIT_CHECK(fd_.valid(), ErrorCode::File, "cannot open ", path, ": ", systemError());
    opened_ = status();
    if (size() == 0) return;
    data_ = mmap(nullptr, size(), PROT_READ, MAP_PRIVATE, fd_.get(), 0);
    DIT_CHECK(data_ != MAP_FAILED, ErrorCode::File, "cannot map ", path, ": ", systemError());
  }
  ~MappedFile() {
    if (data_ != MAP_FAILED) munmap(data_, size());
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return static_cast<const char*>(data_); }
  uint64_t size() const { return static_cast<uint64_t>(opened_.st_size); }

  // What is mapped follows the file: other numbers when it is written to, and SIGBUS when it has
  // become shorter. (A file that took its name leaves this one as it was.)
  void checkUnchanged() const {
    const struct stat now = status();
    DIT_CHECK(now.st_size == opened_.st_size && now.st_mtim.tv_sec == opened_.st_mtim.tv_sec &&
                  now.st_mtim.tv_nsec == opened_.st_mtim.tv_nsec,
              ErrorCode::File, path_, " was changed after it was opened: load it again");
  }

 private:
  struct stat status() const {
    struct stat status {};
    DIT_CHECK(fstat(fd_.get(), &status) == 0, ErrorCode::File, "cannot read the size of ", path_,
              ": ", systemError());
    return status;
  }

  std::string path_;
  FileDescriptor fd_;
  struct stat opened_ {};
  void* data_ = MAP_FAILED;
};

// The number at `from`, which need not be aligned.
float loadFloat(const char* from, DType dtype) {
  const auto load = [from](auto value) {
    std::memcpy(&value, from, sizeof(value));
    return value;
  };
  switch (dtype) {
    case DType::F32:
      return load(float());
    case DType::BF16:
      return bf16ToFloat(load(uint16_t()));
    case DType::F16:
      return f16ToFloat(load(uint16_t()));
    case DType::F64:
      return static_cast<float>(load(double()));
    case DType::I64:
    case DType::I32:
    case DType::U8:
      break;
  }
  fail(ErrorCode::Format, "a weight of type ", dtypeName(dtype), " is not a number of a network");
}

class WeightFiles : public WeightSource {
 public:
  explicit WeightFiles(const std::vector<TensorSource>& tensors) {
    for (const TensorSource& tensor : tensors) {
      for (const TensorPart& part : tensor.parts) check(tensor.name, part);
      DIT_CHECK(!tensor.parts.empty() && tensors_.emplace(tensor.name, tensor).second,
                ErrorCode::Format, tensor.name, ": expected one source with at least one part");
    }
  }

  bool has(const std::string& name) const override { return tensors_.count(name) != 0; }

  Shape shape(const std::string& name) const override {
    const TensorSource& source = find(name);
    int64_t rows = 0;
    for (const TensorPart& part : source.parts) rows += part.shape.empty() ? 1 : part.shape[0];
    const std::vector<int64_t>& first = source.parts[0].shape;
    if (first.empty()) return {};
    Shape shape{rows};
    for (size_t i = 1; i < first.size(); i++) shape.append(first[i]);
    return shape;
  }

  Tensor read(const std::string& name, bool keepBf16) override {
    const TensorSource& source = find(name);
    for (const TensorPart& part : source.parts) files_.at(part.file)->checkUnchanged();
    const Shape whole = shape(name);
    const TensorPart& first = source.parts[0];
    const bool bf16 = keepBf16 && first.dtype == DType::BF16;
    const DType dtype = bf16 ? DType::BF16 : DType::F32;
    if (source.parts.size() == 1 && first.dtype == dtype && contiguous(first) &&
        first.offset % dtypeSize(dtype) == 0) {
      return {const_cast<char*>(files_.at(first.file)->data()) + first.offset, dtype, whole};
    }
    scratch_.resize(static_cast<size_t>(whole.count()) * dtypeSize(dtype));
    char* to = scratch_.data();
    for (const TensorPart& part : source.parts) {
      DIT_CHECK(!bf16 || part.dtype == DType::BF16, ErrorCode::Format, name,
                ": its parts have different types");
      to = gather(part, dtype, to);
    }
    return {scratch_.data(), dtype, whole};
  }

 private:
  const TensorSource& find(const std::string& name) const {
    const auto it = tensors_.find(name);
    DIT_CHECK(it != tensors_.end(), ErrorCode::Format, "the checkpoint has no tensor ", name);
    return it->second;
  }

  static bool contiguous(const TensorPart& part) {
    int64_t stride = 1;
    for (size_t i = part.shape.size(); i-- > 0;) {
      if (part.shape[i] != 1 && part.strides[i] != stride) return false;
      stride *= part.shape[i];
    }
    return true;
  }

  // The whole part must lie within its file: what TypeScript read in a header is not trusted.
  void check(const std::string& name, const TensorPart& part) {
    DIT_CHECK(part.shape.size() == part.strides.size() &&
                  part.shape.size() <= static_cast<size_t>(Shape::kMaxRank),
              ErrorCode::Format, name, ": expected a stride for each of at most ", Shape::kMaxRank,
              " dimensions");
    auto& file = files_[part.file];
    if (!file) file = std::make_unique<MappedFile>(part.file);
    uint64_t last = 0, count = 1;  // furthest element; elements
    bool overflow = false;
    for (size_t i = 0; i < part.shape.size(); i++) {
      DIT_CHECK(part.shape[i] >= 0 && part.strides[i] >= 0, ErrorCode::Format, name,
                ": negative sizes or strides");
      const uint64_t size = static_cast<uint64_t>(part.shape[i]);
      uint64_t reach = 0;
      overflow |= __builtin_mul_overflow(count, size, &count);
      if (size > 0) {
        overflow |=
            __builtin_mul_overflow(size - 1, static_cast<uint64_t>(part.strides[i]), &reach);
        overflow |= __builtin_add_overflow(last, reach, &last);
      }
    }
    uint64_t end = 0;
    overflow |= __builtin_add_overflow(last, uint64_t{1}, &end);
    overflow |= __builtin_mul_overflow(end, uint64_t{dtypeSize(part.dtype)}, &end);
    overflow |= __builtin_add_overflow(end, part.offset, &end);
    DIT_CHECK(!overflow && count <= uint64_t{1} << 40 && (count == 0 || end <= file->size()),
              ErrorCode::File, part.file, " is too short for ", name, ": expected at least ", end,
              " bytes, got ", file->size(), "; the file may be incomplete");
  }

  // Writes the elements of a part in row-major order; returns the end.
  char* gather(const TensorPart& part, DType dtype, char* to) const {
    int64_t count = 1;
    for (int64_t size : part.shape) count *= size;
    if (count == 0) return to;
    const char* base = files_.at(part.file)->data() + part.offset;
    const int64_t itemSize = static_cast<int64_t>(dtypeSize(part.dtype));
    const size_t rank = part.shape.size();
    const int64_t inner = rank ? part.shape[rank - 1] : 1;
    const int64_t innerStride = rank ? part.strides[rank - 1] : 0;
    std::vector<int64_t> index(rank, 0);
    for (int64_t row = 0; row < count / inner; row++) {
      int64_t element = 0;
      for (size_t i = 0; i + 1 < rank; i++) element += index[i] * part.strides[i];
      const char* from = base + element * itemSize;
      for (int64_t i = 0; i < inner; i++, from += innerStride * itemSize) {
        if (dtype == DType::BF16) {
          std::memcpy(to, from, 2);
          to += 2;
        } else {
          const float value = loadFloat(from, part.dtype);
          std::memcpy(to, &value, 4);
          to += 4;
        }
      }
      for (size_t i = rank; i-- > 1;) {
        if (++index[i - 1] < part.shape[i - 1]) break;
        index[i - 1] = 0;
      }
    }
    return to;
  }

  std::unordered_map<std::string, TensorSource> tensors_;
  std::unordered_map<std::string, std::unique_ptr<MappedFile>> files_;
  std::vector<char> scratch_;
};

class InitialWeights : public WeightSource {
 public:
  InitialWeights(const std::vector<ParamSpec>& params, uint64_t seed) : seed_(seed) {
    for (const ParamSpec& param : params) {
      const uint32_t number = static_cast<uint32_t>(params_.size());
      params_.emplace(param.name, Numbered{param, number});
    }
  }

  bool has(const std::string& name) const override { return params_.count(name) != 0; }
  Shape shape(const std::string& name) const override { return find(name).spec.shape; }

  Tensor read(const std::string& name, bool) override {
    const auto& [spec, number] = find(name);
    const int64_t count = spec.shape.count();
    scratch_.assign(static_cast<size_t>(count), 0.0f);
    switch (spec.init) {
      case Init::Zero:
        break;
      case Init::Fixed:
        scratch_ = spec.fixed;
        break;
      case Init::Normal002:
        for (int64_t block = 0; block * 4 < count; block++) {
          float four[4];
          normal4(seed_, NoiseStream::Init, number, static_cast<uint64_t>(block), four);
          for (int64_t i = block * 4; i < std::min(count, block * 4 + 4); i++) {
            scratch_[i] = 0.02f * four[i - block * 4];
          }
        }
        break;
      case Init::XavierUniform: {
        // Glorot & Bengio 2010: uniform in +-sqrt(6 / (fan in + fan out)).
        const int64_t fanOut = spec.shape[0], fanIn = count / fanOut;
        const float bound = std::sqrt(6.0f / static_cast<float>(fanIn + fanOut));
        for (int64_t block = 0; block * 4 < count; block++) {
          const Philox4 bits =
              philox(seed_, {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                              number, static_cast<uint32_t>(NoiseStream::Init)}});
          for (int64_t i = block * 4; i < std::min(count, block * 4 + 4); i++) {
            scratch_[i] = bound * static_cast<float>(2 * uniformOpen(bits.v[i - block * 4]) - 1);
          }
        }
        break;
      }
    }
    return {scratch_.data(), DType::F32, spec.shape};
  }

 private:
  struct Numbered {
    ParamSpec spec;
    uint32_t number;
  };
  const Numbered& find(const std::string& name) const {
    const auto it = params_.find(name);
    DIT_CHECK(it != params_.end(), ErrorCode::Internal, "no parameter ", name);
    return it->second;
  }

  uint64_t seed_;
  std::unordered_map<std::string, Numbered> params_;
  std::vector<float> scratch_;
};

// A file that becomes visible under its name only when it is whole.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path)
      : path_(std::move(path)),
        temporary_(path_ + ".tmp-" + std::to_string(gettid())),  // no other model's
        fd_(open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    DIT_CHECK(fd_.valid(), ErrorCode::File, "cannot create ", temporary_, ": ", systemError());
  }
  ~AtomicFile() {
    if (!committed_) unlink(temporary_.c_str());
  }

  void write(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = ::write(fd_.get(), from, bytes);
      if (written < 0 && errno == EINTR) continue;
      DIT_CHECK(written > 0, ErrorCode::File, "cannot write ", temporary_, ": ", systemError());
      from += written;
      bytes -= static_cast<size_t>(written);
    }
  }

  void commit() {
    DIT_CHECK(fsync(fd_.get()) == 0, ErrorCode::File, "cannot flush ", temporary_, ": ",
              systemError());
    DIT_CHECK(rename(temporary_.c_str(), path_.c_str()) == 0, ErrorCode::File, "cannot rename ",
              temporary_, " to ", path_, ": ", systemError());
    committed_ = true;
    const size_t slash = path_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
    const FileDescriptor directory(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIT_CHECK(directory.valid() && fsync(directory.get()) == 0, ErrorCode::File,
              "cannot flush the folder ", folder, ": ", systemError());
  }

 private:
  std::string path_, temporary_;
  FileDescriptor fd_;
  bool committed_ = false;
};

}  // namespace

Tensor WeightSource::read(const ParamSpec& param, bool keepBf16) {
  DIT_CHECK(shape(param.name) == param.shape, ErrorCode::Format, param.name, ": expected shape ",
            param.shape, ", got ", shape(param.name));
  return read(param.name, keepBf16);
}

std::unique_ptr<WeightSource> openWeightFiles(const std::vector<TensorSource>& tensors) {
  return std::make_unique<WeightFiles>(tensors);
}

std::unique_ptr<WeightSource> initialWeights(const std::vector<ParamSpec>& params, uint64_t seed) {
  return std::make_unique<InitialWeights>(params, seed);
}

void writeWeights(const std::string& path, const std::string& header, WeightSource& source,
                  const std::vector<SavedTensor>& tensors) {
  AtomicFile file(path);
  file.write(header.data(), header.size());
  std::vector<uint16_t> narrow;
  for (const SavedTensor& saved : tensors) {
    const Tensor values = source.read(saved.name, saved.dtype == DType::BF16);
    const int64_t rows = values.shape.rank() ? values.shape[0] : 1;
    DIT_CHECK(saved.rowBegin >= 0 && saved.rowBegin <= saved.rowEnd && saved.rowEnd <= rows,
              ErrorCode::Internal, "rows [", saved.rowBegin, ", ", saved.rowEnd, ") of ",
              saved.name, " ", values.shape);
    const int64_t inner = rows ? values.count() / rows : 0;
    const size_t begin = static_cast<size_t>(saved.rowBegin * inner);
    const size_t count = static_cast<size_t>((saved.rowEnd - saved.rowBegin) * inner);
    if (values.dtype == saved.dtype) {
      const size_t itemSize = dtypeSize(saved.dtype);
      file.write(values.as<char>() + begin * itemSize, count * itemSize);
    } else {
      DIT_CHECK(saved.dtype == DType::BF16 && values.dtype == DType::F32, ErrorCode::Internal,
                "cannot save ", dtypeName(values.dtype), " as ", dtypeName(saved.dtype));
      narrow.resize(count);
      for (size_t i = 0; i < count; i++) narrow[i] = floatToBf16(values.as<float>()[begin + i]);
      file.write(narrow.data(), count * 2);
    }
  }
  file.commit();
}

}  // namespace dit
