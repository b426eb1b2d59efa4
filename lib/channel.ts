/**
 * A queue between one that tells and one that listens: what is pushed before it is asked for waits.
 *
 * @internal
 */
export class Channel<T> implements AsyncIterable<T> {
  readonly #values: T[] = []
  #ended = false
  #error: { reason: unknown } | undefined
  #wake: (() => void) | undefined

  push(value: T): void {
    this.#values.push(value)
    this.#wake?.()
  }

  /** No more values. */
  end(): void {
    this.#ended = true
    this.#wake?.()
  }

  /** No more values, and the listener's iteration throws. */
  fail(reason: unknown): void {
    this.#error = { reason }
    this.#wake?.()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    for (;;) {
      const value = this.#values.shift()
      if (value !== undefined) yield value
      else if (this.#error) throw this.#error.reason
      else if (this.#ended) return
      else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
      }
    }
  }
}
