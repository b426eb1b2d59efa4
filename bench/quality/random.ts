/**
 * Numbers from 0 to 1 (1 excluded) that follow from a seed alone: the xorshift generator of 128 bits of
 * Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8, 2003.
 */
export class Random {
  readonly #state: Uint32Array

  constructor(seed: number) {
    this.#state = new Uint32Array([seed, seed / 2 ** 32, 0x6b43a9b5, 0x2545f491])
    for (let i = 0; i < 64; i++) this.next() // until a seed's few bits have reached all of the state
  }

  next(): number {
    const [x = 0, y = 0, z = 0, w = 0] = this.#state
    const t = x ^ (x << 11)
    this.#state.set([y, z, w, w ^ (w >>> 19) ^ t ^ (t >>> 8)])
    return (this.#state[3] as number) / 2 ** 32
  }

  /** The numbers 0 to n - 1 in random order (Fisher and Yates). */
  permutation(n: number): Uint32Array {
    const order = Uint32Array.from({ length: n }, (_, i) => i)
    for (let i = n - 1; i > 0; i--) {
      const j = Math.floor(this.next() * (i + 1))
      const moved = order[i] as number
      order[i] = order[j] as number
      order[j] = moved
    }
    return order
  }
}
