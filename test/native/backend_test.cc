#include <cstdint>
#include <cstring>
#include <optional>

#include "harness.h"

namespace dit::test {
namespace {

DIT_CASE("backend/open") {
  const std::string message = EXPECT_ERROR(Device, openBackend({.device = "abacus", .threads = 0}));
  EXPECT(message.find("\"abacus\"") != std::string::npos, message);
  EXPECT_ERROR(Option, openBackend({.device = test.options().device, .threads = -1}));
  EXPECT(test.backend().name() == test.options().device, test.backend().name());
  EXPECT(test.backend().supports(Precision::F32));
}

DIT_CASE("backend/memory") {
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{4097}, size_t{5} << 20}) {
    void* memory = test.backend().allocate(bytes);
    EXPECT(memory != nullptr && reinterpret_cast<uintptr_t>(memory) % 256 == 0, bytes);
    test.backend().free(memory);
  }
  // What was freed can be had again: on the CPU, which gives more than it has, 16 TB in all.
  const size_t piece = size_t{1} << 30;
  const bool cpu = test.backend().name() == "cpu";
  const size_t pieces = cpu ? 16 << 10 : test.backend().freeBytes() / piece + 2;
  for (size_t i = 0; i < pieces; i++) test.backend().free(test.backend().allocate(piece));
  const std::string message = EXPECT_ERROR(Oom, test.backend().allocate(size_t{1} << 60));
  EXPECT(message.find("1152921504606846976 bytes") != std::string::npos, message);
}

// A slice of columns takes and gives dense values, and leaves its neighbours alone.
DIT_CASE("backend/copies-columns") {
  DeviceTensor table = test.output(DType::F32, {2, 3, 5});
  std::vector<double> zeros(30, 0);
  table.upload({DType::F32, {2, 3, 5}, zeros});
  const Tensor slice = table.tensor().columns(1, 2);
  std::vector<float> in(12), out(12);
  for (int i = 0; i < 12; i++) in[i] = static_cast<float>(i + 1);
  test.backend().upload(slice, in.data());
  test.backend().download(out.data(), slice);
  EXPECT(in == out);
  const std::vector<double> all = table.download().v;
  for (int i = 0; i < 30; i++) {
    const int column = i % 5;
    const bool inside = column == 1 || column == 2;
    EXPECT(all[i] == (inside ? in[i / 5 * 2 + column - 1] : 0), i, ": ", all[i]);
  }
}

// Zeros where a tensor or a slice of columns is, nothing beside it (download checks the guards).
DIT_CASE("backend/zero") {
  for (DType dtype : {DType::F32, DType::BF16, DType::F64, DType::U8}) {
    DeviceTensor all = test.output(dtype, {3, 7});
    test.backend().zero(all);
    EXPECT(all.download().v == std::vector<double>(21, 0), dtypeName(dtype));
  }
  DeviceTensor table = test.output(DType::F32, {2, 3, 5});
  table.upload({DType::F32, {2, 3, 5}, std::vector<double>(30, 1)});
  test.backend().zero(table.tensor().columns(1, 2));
  const std::vector<double> values = table.download().v;
  for (int i = 0; i < 30; i++) {
    const int column = i % 5;
    EXPECT(values[i] == (column == 1 || column == 2 ? 0 : 1), i, ": ", values[i]);
  }
}

// Work that is repeated gives what it gives when it is queued anew, whether a device replays it or
// not: with other values at the same places, after memory was freed, after work that has thrown.
DIT_CASE("backend/repeat") {
  constexpr int64_t kCount = 300;
  Ops& ops = test.ops();
  DeviceTensor x = test.output(DType::F32, {kCount}), y = test.output(DType::F32, {kCount}),
               want = test.output(DType::F32, {kCount});
  int calls = 0;
  const auto repeatedRight = [&](uint64_t key, double shift) {
    x.upload(test.random(DType::F32, {kCount}, 1, shift));
    ops.backend().zero(y);
    ops.backend().repeat(key, [&] {
      calls++;
      ops.silu({.x = x, .y = y});
    });
    ops.silu({.x = x, .y = want});
    return y.bytes() == want.bytes();
  };
  for (int i = 0; i < 5; i++) {
    for (const uint64_t key : {1, 2}) EXPECT(repeatedRight(key, i), key, ", time ", i);
  }
  // Each was run and recorded, or run every time.
  const bool records = calls == 4;
  EXPECT(records || calls == 10, calls);
  { const DeviceBuffer freed(ops.backend(), 1); }
  for (int i = 0; i < 3; i++) EXPECT(repeatedRight(1, i), "after a free, time ", i);
  EXPECT(calls == (records ? 6 : 13), calls);

  // Thrown in the first run, and while it is recorded.
  for (int i = 0; i < 3; i++) {
    EXPECT_ERROR(Aborted, ops.backend().repeat(3, [&] {
      ops.silu({.x = x, .y = y});
      fail(ErrorCode::Aborted, "enough");
    }));
    EXPECT(repeatedRight(1, i), "after an error, time ", i);
    if (i > 0)
      EXPECT_ERROR(Aborted, ops.backend().repeat(4, [&] { fail(ErrorCode::Aborted, ""); }));
    if (i == 0) EXPECT(repeatedRight(4, i));
  }
  for (int i = 0; i < 4; i++) {
    for (const uint64_t key : {3, 4}) EXPECT(repeatedRight(key, i), key, " again, time ", i);
  }
  for (int64_t rows = 1; rows <= 130; rows++) EXPECT(rowsFor(ops.backend(), rows) >= rows, rows);
}

// Work that needs more memory for itself than before finds it where little is left, and what was
// recorded with the memory that is given up for it is right afterwards, too. Rows of 2001 numbers
// begin at no multiple of 16 bytes, so that a GPU copies them there.
DIT_CASE("backend/short-of-memory") {
  constexpr int64_t kK = 2001, kN = 8;
  Ops ops(openBackend({.device = test.options().device}));
  Backend& backend = ops.backend();
  const bool low = backend.supports(Precision::BF16);
  const DType type = low ? DType::BF16 : DType::F32;
  const Values w = test.random(DType::F32, {kN, kK}), bias = test.random(DType::F32, {kN});
  std::vector<float> values = w.as<float>();
  DeviceTensor offsets(backend, DType::F32, {kN});
  offsets.upload(bias);

  struct Product {
    std::unique_ptr<PreparedWeight> weight;
    DeviceTensor x, y;
    std::vector<char> bits;  // of y
  };
  const auto product = [&](int64_t rows) {
    Product p{ops.prepareLinear({.values = Tensor(values.data(), DType::F32, {kN, kK}),
                                 .rows = rows,
                                 .precision = low ? Precision::BF16 : Precision::F32}),
              DeviceTensor(backend, type, {1, rows, kK}),
              DeviceTensor(backend, DType::F32, {1, rows, kN}),
              {}};
    p.x.upload(test.random(type, {1, rows, kK}));
    return p;
  };
  const auto run = [&](Product& p, uint64_t key) {
    backend.zero(p.y);
    backend.repeat(
        key, [&] { ops.linear({.x = p.x, .weight = p.weight.get(), .bias = offsets, .y = p.y}); });
    const std::vector<char> bits = p.y.bytes();
    EXPECT(p.bits.empty() || bits == p.bits, "product ", key);
    p.bits = bits;
  };
  constexpr int64_t kFew = 2000, kMany = 3500;  // copies of 8 and 14 MB
  Product few = product(kFew), many = product(kMany);
  for (int i = 0; i < 3; i++) run(few, 1);
  std::optional<DeviceBuffer> other;
  if (backend.name() != "cpu") other.emplace(backend, backend.freeBytes() - (11 << 20));
  for (int i = 0; i < 3; i++) {
    run(many, 2);
    run(few, 1);
  }
  other.reset();
  std::vector<char> again = many.bits;
  many.bits.clear();
  run(many, 3);
  EXPECT(many.bits == again, "with memory to spare");
}

// Two backends with other numbers of threads, taking turns: each gives its own bits every time.
DIT_CASE("backend/threads-take-turns") {
  const int64_t m = 64, n = 96, k = 512;
  const Values x = test.random(DType::F32, {1, m, k}), w = test.random(DType::F32, {n, k}),
               bias = test.random(DType::F32, {n});
  std::vector<float> values = w.as<float>();
  struct Side {
    std::unique_ptr<Ops> ops;
    std::unique_ptr<PreparedWeight> weight;
    std::vector<char> bits;
  };
  std::vector<Side> sides(2);
  for (int i = 0; i < 6; i++) {
    Side& side = sides[i % 2];
    if (!side.ops) {
      side.ops = std::make_unique<Ops>(
          openBackend({.device = test.options().device, .threads = 1 + i % 2}));
      side.weight = side.ops->prepareLinear({.values = Tensor(values.data(), DType::F32, {n, k}),
                                             .rows = m,
                                             .precision = Precision::F32});
    }
    DeviceTensor in(side.ops->backend(), DType::F32, {1, m, k});
    DeviceTensor offsets(side.ops->backend(), DType::F32, {n});
    DeviceTensor y(side.ops->backend(), DType::F32, {1, m, n});
    in.upload(x);
    offsets.upload(bias);
    side.ops->linear({.x = in, .weight = side.weight.get(), .bias = offsets, .y = y});
    const std::vector<char> bits = y.bytes();
    EXPECT(side.bits.empty() || bits == side.bits, "run ", i);
    side.bits = bits;
  }
}

}  // namespace
}  // namespace dit::test
