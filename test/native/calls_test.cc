// Who is let in, and what a round costs: without a model, at times that the test makes up.
#include "model/calls.h"

#include <cmath>

#include "harness.h"

namespace dit::test {
namespace {

CallRequest call(int64_t images, int64_t steps = 10, int32_t priority = 0) {
  return {.images = images, .steps = steps, .rows = 2 * steps, .priority = priority, .caller = {}};
}

CallRequest due(double seconds, CallRequest request) {
  request.deadline = seconds;
  return request;
}

// What a refusal says; fails when the call is let in.
Refusal refused(Calls& calls, const CallRequest& request) {
  try {
    calls.admit(request, 100);
  } catch (const Refusal& refusal) {
    return refusal;
  }
  fail(ErrorCode::Internal, "it was let in");
}

bool near(double got, double want) { return std::abs(got - want) <= 1e-9 + 0.01 * want; }

DIT_CASE("calls/queue") {
  Calls calls;
  calls.configure(4, 2);
  const auto first = calls.admit(call(5), 100);  // nobody waits before it
  EXPECT(calls.stats().waiting == 5);            // it has no lane yet
  calls.inTheMaking(4, 0);
  EXPECT(calls.stats().waiting == 1 && calls.stats().lanes == 4);
  const auto second = calls.admit(call(1), 100);
  const Refusal full = refused(calls, call(1));
  EXPECT(full.code() == ErrorCode::Busy && full.retryAfter == 1.0, full.what());
  // Those of a lower priority are no reason to wait.
  const auto important = calls.admit(call(3, 10, 1), 100);
  EXPECT(refused(calls, call(1)).code() == ErrorCode::Busy);
  calls.leave(important->id);
  EXPECT(refused(calls, call(1)).code() == ErrorCode::Busy);
  calls.finished(*first);
  EXPECT(calls.find(first->id) == first);
  const auto third = calls.admit(call(1), 100);
  EXPECT(refused(calls, call(1)).code() == ErrorCode::Busy);
  calls.leave(second->id);  // at once, not after the round under way
  EXPECT(!calls.find(second->id));
  calls.admit(call(1), 100);

  const CallStats stats = calls.stats();
  EXPECT(stats.refusedBusy == 4 && stats.cancelled == 2 && stats.images == 1);
  for (int i = 0; i < 4; i++) calls.finished(*first);
  EXPECT(!calls.find(first->id), "it ends with its last image");
  calls.leave(first->id);
  EXPECT(calls.stats().cancelled == 2, "it had ended");

  Calls none;
  none.configure(2, 0);  // nobody waits
  none.admit(call(2), 100);
  EXPECT(refused(none, call(1)).code() == ErrorCode::Busy);
  Calls any;
  any.configure(1, std::nullopt);
  for (int i = 0; i < 1000; i++) any.admit(call(10), 100);
  EXPECT(any.stats().waiting == 10000);
}

DIT_CASE("calls/retry-after") {
  Calls calls;
  calls.configure(1, 3);
  for (int i = 0; i < 50; i++) calls.turnDone(2, 0.5, 0);
  calls.admit(call(4), 100);
  // 4 images of 10 rounds of half a second; one of them has to go.
  EXPECT(near(*refused(calls, call(1)).retryAfter, 5), *refused(calls, call(1)).retryAfter);
  calls.enter(call(4, 100, -1), 100);
  EXPECT(near(*refused(calls, call(1)).retryAfter, 5), "what waits behind it is no reason");
}

DIT_CASE("calls/deadline") {
  Calls calls;
  calls.configure(2, std::nullopt);
  calls.leave(calls.admit(due(1e-6, call(1)), 100)->id);  // nothing is known yet
  for (int i = 0; i < 50; i++) calls.turnDone(2, 0.9, 0.7);
  for (int i = 0; i < 50; i++) calls.decoded(0.5);
  // Alone: 10 rounds of 2 rows at 0.1 s, and the decoding.
  const Refusal never = refused(calls, due(2.4, call(1)));
  EXPECT(never.code() == ErrorCode::Deadline && !never.retryAfter, never.what());
  CallRequest latent = due(2.1, call(1));
  latent.decoded = false;
  calls.leave(calls.admit(latent, 100)->id);
  const auto image = calls.admit(due(2.6, call(1)), 100);
  EXPECT(!calls.tooLate(*image, 100.5));
  EXPECT(calls.tooLate(*image, 100.8), "not even if all went much faster");
  calls.stepped(*image, 5);
  EXPECT(!calls.tooLate(*image, 100.8) && calls.tooLate(*image, 103));
  calls.failed(*image, ErrorCode::Deadline);

  // Beside another caller it gets half of the rows until one of them is done.
  const auto other = calls.admit(call(1, 100), 100);
  const Refusal late = refused(calls, due(3, call(1)));
  EXPECT(late.retryAfter && near(*late.retryAfter, 4 + 0.5 + 0.05 - 3), *late.retryAfter);
  calls.admit(due(5, call(1)), 100);
  EXPECT(refused(calls, due(5, call(1))).retryAfter);
  calls.admit(due(3, call(1, 10, 1)), 100);  // a higher priority does not wait for them
  EXPECT(calls.stats().refusedDeadline == 4);
}

DIT_CASE("calls/callers") {
  Calls calls;
  calls.configure(2, std::nullopt);
  const CallRequest one{.caller = "one"}, two{.caller = "two"};
  const auto a = calls.admit(one, 100), again = calls.admit(one, 100);
  const auto b = calls.admit(two, 100), own = calls.admit(call(1), 100);
  EXPECT(a->caller == again->caller && a->caller != b->caller && a->id != again->id);
  EXPECT(own->caller != calls.admit(call(1), 100)->caller);
}

DIT_CASE("calls/round-cost") {
  RoundCost cost;
  EXPECT(!cost.measured() && cost.seconds(3) == 0);
  for (int i = 0; i < 10; i++) cost.add(4, 2);
  EXPECT(near(cost.seconds(8), 4) && near(cost.seconds(1), 0.5),
         "proportional, as far as is known");
  RoundCost device;  // a second, and a tenth of one for each row
  for (int i = 0; i < 100; i++) device.add(1 + i % 8, 1 + 0.1 * (1 + i % 8));
  EXPECT(near(device.seconds(64), 7.4) && near(device.seconds(1), 1.1), device.seconds(64));
  for (int i = 0; i < 1000; i++) device.add(1 + i % 8, 2 + 0.2 * (1 + i % 8));
  EXPECT(near(device.seconds(64), 14.8), "what was long ago is forgotten");
  RoundCost odd;  // fuller rounds that were faster by chance do not make rows free of cost
  for (int i = 0; i < 100; i++) odd.add(1 + i % 2, 2 - 0.5 * (i % 2));
  EXPECT(odd.seconds(100) > 0 && odd.seconds(1) > 0);
}

}  // namespace
}  // namespace dit::test
