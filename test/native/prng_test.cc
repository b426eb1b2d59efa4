#include "prng.h"

#include "fixture.h"
#include "harness.h"

namespace dit::test {
namespace {

// The check values of the generator's description.
DIT_CASE("prng/known-values") {
  EXPECT(prngSeed("foobar") == 0x85944171f73967e8);
  EXPECT(prngBits(1234567, 0) == 6457827717110365317u);
  EXPECT(prngBits(1234567, 1) == 3203168211198807973u);
}

// Reading a listing checks seeds, first and last values; its stored input checks all of a tensor.
DIT_CASE("prng/listing") {
  const PrngListing listing = readPrngListing(fixturePath("full_size/sd_vae.json"));
  EXPECT(listing.weights.size() == 248, listing.weights.size(), " weights");
  const Fixture file("full_size/sd_vae.safetensors");
  const Tensor& want = file.at("z");
  const std::vector<float> got = listing.at("input.z").values();
  EXPECT(static_cast<int64_t>(got.size()) == want.count());
  EXPECT(std::equal(got.begin(), got.end(), want.as<float>()), "input.z");
  EXPECT_ERROR(Format, listing.at("input.y"));
}

}  // namespace
}  // namespace dit::test
