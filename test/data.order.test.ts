import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { epochOrder } from '../lib/data/order.js'

function order(length: number, seed: bigint, epoch: number): number[] {
  const { item } = epochOrder(length, seed, epoch)
  return Array.from({ length }, (_, index) => item(index))
}

test('every item comes once an epoch, whatever the length', () => {
  for (const length of [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4096, 4097, 60000]) {
    const sorted = order(length, 7n, 3).sort((a, b) => a - b)
    assert.ok(
      sorted.every((item, i) => item === i),
      `length ${length}`,
    )
  }
  const { item } = epochOrder(3_000_000_000, 1n, 0)
  for (const index of [0, 1, 2_147_483_648, 2_999_999_999]) {
    assert.ok(item(index) >= 0 && item(index) < 3_000_000_000)
  }
})

test('the order follows from seed and epoch, and from both', () => {
  assert.equal(order(100, 5n, 2), order(100, 5n, 2))
  assert.not.equal(order(100, 5n, 2), order(100, 5n, 3))
  assert.not.equal(order(100, 5n, 2), order(100, 6n, 2))
  assert.not.equal(order(100, 2n ** 63n, 0), order(100, 0n, 0))
})

/** Pearson's statistic over its degrees of freedom: 1, give or take sqrt(2 / degrees). */
function chiSquare(counts: number[]): number {
  const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length
  return counts.reduce((sum, count) => sum + (count - mean) ** 2 / mean, 0) / (counts.length - 1)
}

test('every item is as likely at every place, and after every other', () => {
  const epochs = 20_000
  for (const length of [5, 12]) {
    const places = new Array(length * length).fill(0)
    const followers = new Array(length * length).fill(0)
    for (let epoch = 0; epoch < epochs; epoch++) {
      const items = order(length, 11n, epoch)
      for (const [i, item] of items.entries()) {
        places[i * length + item]++
        if (i > 0) followers[(items[i - 1] as number) * length + item]++
      }
    }
    const pairs = followers.filter((_, i) => i % (length + 1) !== 0)
    for (const counts of [places, pairs]) {
      const statistic = chiSquare(counts)
      const five = 5 * Math.sqrt(2 / (counts.length - 1))
      assert.ok(statistic < 1 + five, `length ${length}: ${statistic}`)
    }
  }
})

test('the coin is fair, and tossed anew in every epoch and for every item', () => {
  const n = 100_000
  const tosses = (epoch: number) => {
    const { mirrored } = epochOrder(n, 3n, epoch)
    return Array.from({ length: n }, (_, item) => mirrored(item))
  }
  const [one, two] = [tosses(0), tosses(1)] as const
  assert.equal(one, tosses(0))
  const share = (list: boolean[]) => list.filter(Boolean).length / n
  const sameAsNext = one.map((toss, i) => toss === one[(i + 1) % n])
  const sameAsLater = one.map((toss, i) => toss === two[i])
  for (const list of [one, two, sameAsNext, sameAsLater]) {
    assert.ok(Math.abs(share(list) - 0.5) < (5 * 0.5) / Math.sqrt(n), String(share(list)))
  }
})

test.run()
