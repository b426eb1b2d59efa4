/** Steps whose gradient norms are remembered, and that must be done before a spike can be told. */
const window = 100

/**
 * What gradient norms are usual: the median of those of the last 100 steps that were applied.
 *
 * @internal
 */
export class UsualNorm {
  readonly #norms: number[]

  /** `norms` are those of an earlier `values`. */
  constructor(norms: readonly number[] = []) {
    this.#norms = norms.slice(-window)
  }

  add(norm: number): void {
    this.#norms.push(norm)
    if (this.#norms.length > window) this.#norms.shift()
  }

  /** The norm from which on a step is a spike; 0, none, before 100 steps are known. */
  limit(factor: number): number {
    if (this.#norms.length < window) return 0
    const sorted = this.#norms.toSorted((a, b) => a - b)
    const median = ((sorted[window / 2 - 1] as number) + (sorted[window / 2] as number)) / 2
    return factor * median
  }

  /** Oldest first. */
  get values(): readonly number[] {
    return this.#norms
  }
}
