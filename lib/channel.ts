/**
 * A queue between one that tells and one that listens: what is pushed before it is asked for waits.
 * Values of one key are news of one thing: a new one takes the place of one that still waits, so a slow
 * listener finds the latest, and the queue is never longer than there are keys.
 *
 * @internal
 */
export class Channel<T> implements AsyncIterable<T> {
  readonly #waiting = new Map<unknown, T>()
  #ended = false
  #error: { reason: unknown } | undefined
  #wake: (() => void) | undefined

  /** Without a key nothing takes the value's place. */
  push(value: T, key: unknown = Symbol()): void {
    this.#waiting.set(key, value)
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
      const [next] = this.#waiting
      if (next) {
        this.#waiting.delete(next[0])
        yield next[1]
      } else if (this.#error) throw this.#error.reason
      else if (this.#ended) return
      else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve
        })
      }
    }
  }
}
