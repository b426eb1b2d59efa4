// The order of an epoch, and its coin: both follow from (seed, epoch) and can be asked for any item,
// so that a training is continued anywhere without a table and without a replay.

import { createHash } from 'node:crypto'

/** Of the Feistel network: with 8 rounds of a good mixing function nothing of the order is left. */
const rounds = 8

/** What one epoch does with its items. */
export interface Epoch {
  /** The item that comes as number `index` of the epoch. */
  item(index: number): number
  /** Whether the image of an item is mirrored: true for half of them. */
  mirrored(item: number): boolean
}

/**
 * A permutation of `length` items and a coin for each, for every (seed, epoch).
 *
 * The permutation is a Feistel network over the smallest 4^k >= length, walked along until it meets a
 * number below `length` (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
 *
 * @example
 * const { item } = epochOrder(60000, 1n, 0)
 * const first = item(0)
 */
export function epochOrder(length: number, seed: bigint, epoch: number): Epoch {
  const keys = epochKeys(seed, epoch)
  const half = Math.max(1, Math.ceil(Math.log2(length) / 2))
  const mask = 2 ** half - 1
  const encrypt = (value: number) => {
    let left = Math.floor(value / 2 ** half)
    let right = value & mask
    for (let round = 0; round < rounds; round++) {
      const next = left ^ (mix(right ^ (keys[round] as number)) & mask)
      left = right
      right = next
    }
    return left * 2 ** half + right
  }
  return {
    item(index) {
      let value = encrypt(index)
      while (value >= length) value = encrypt(value)
      return value
    },
    mirrored: (item) => (mix(item ^ (keys[rounds] as number)) & 1) === 1,
  }
}

/** `rounds` keys for the permutation and one for the coin, 32 bits each. */
function epochKeys(seed: bigint, epoch: number): Uint32Array {
  const keys = new Uint32Array(rounds + 1)
  const digest = createHash('sha512').update(`dit-native order ${seed} ${epoch}`).digest()
  for (let i = 0; i < keys.length; i++) keys[i] = digest.readUInt32LE(4 * i)
  return keys
}

/** Every bit of the result depends on every bit of a 32-bit number (the finaliser of MurmurHash3). */
function mix(value: number): number {
  let bits = value | 0
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b)
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35)
  return (bits ^ (bits >>> 16)) >>> 0
}
