// From items to batches: what every kind of training data has in common.

import { setImmediate } from 'node:timers/promises'
import { DiTError } from '../errors.js'
import { epochOrder } from './order.js'
import type { BatchOptions, DataBatch, OpenData, OpenDataOptions, SkippedItem } from './types.js'

/** An item as it goes into a batch: numbers [channels, height, width] and the class's number. */
export interface LoadedItem {
  x: Float32Array
  deviation: Float32Array | null
  label: number
}

/** An item in its turn. */
export interface Turn {
  /** What it is called in messages. */
  name(): string
  /** Why it cannot be used: a string. */
  load(): Promise<LoadedItem | string> | LoadedItem | string
}

/** The items of one epoch that can be read in any order. */
export interface IndexedItems {
  readonly length: number
  name(item: number): string
  load(item: number, mirrored: boolean): ReturnType<Turn['load']>
}

/** Epoch after epoch, from item number `position` on. */
export function* shuffledTurns(
  items: IndexedItems,
  { seed, position, flip }: BatchOptions,
): Generator<Turn, never, undefined> {
  const { length } = items
  for (let epoch = Math.floor(position / length); ; epoch++) {
    const order = epochOrder(length, seed, epoch)
    for (let index = Math.max(0, position - epoch * length); index < length; index++) {
      const item = order.item(index)
      yield {
        name: () => items.name(item),
        load: () => items.load(item, flip && order.mirrored(item)),
      }
    }
  }
}

/** Training data without its batches. */
export interface Source extends Omit<OpenData, 'batches'> {
  /** Items that are loaded at once. */
  readonly ahead: number
  /** The items in the order of the training; they are asked for a little ahead. */
  turns(options: BatchOptions): Iterator<Turn> | AsyncIterator<Turn>
}

/** So many damaged items one after the other, or a whole epoch of them, end the work. */
const maxBadRun = 1000

/** Damaged items: what is done about them, and when there are too many. */
export class BadItems {
  /** Since the last good one. */
  #run = 0
  #last: SkippedItem | undefined
  #anyGood = false

  /** `length`: items of an epoch, where that is known. */
  constructor(
    private readonly action: OpenDataOptions['onBadItem'],
    private readonly length = Number.POSITIVE_INFINITY,
  ) {}

  good(): void {
    this.#run = 0
    this.#anyGood = true
  }

  /** Throws ERR_DIT_FORMAT when that ends the work. */
  bad(item: string, reason: string): SkippedItem {
    if (this.action === 'error') {
      throw new DiTError(
        'ERR_DIT_FORMAT',
        `${item} cannot be used: ${reason}. Remove it, or have damaged items skipped`,
      )
    }
    this.#last = { item, reason }
    if (++this.#run >= Math.min(maxBadRun, this.length)) throw allBad(this.#run, this.#last)
    return this.#last
  }

  /** Throws ERR_DIT_FORMAT when there were damaged items alone. */
  end(): void {
    if (this.#last && !this.#anyGood) throw allBad(this.#run, this.#last)
  }
}

function allBad(count: number, { item, reason }: SkippedItem): DiTError {
  return new DiTError(
    'ERR_DIT_FORMAT',
    `Not one of ${count} items in a row could be used; the last, ${item}: ${reason}`,
  )
}

/** How much is copied before the event loop has its turn: about 1 ms. */
const bytesPerTurn = 1 << 20

interface Loaded<T extends Turn> {
  turn: T
  item: LoadedItem | string
}

/** Loads items ahead of their turn, so many at once, and gives them in order. */
export class Lookahead<T extends Turn> {
  readonly #waiting: Promise<Loaded<T>>[] = []
  #ended = false

  constructor(
    private readonly turns: Iterator<T> | AsyncIterator<T>,
    private readonly ahead: number,
  ) {}

  /** The next item; undefined after the last. */
  async next(): Promise<Loaded<T> | undefined> {
    while (!this.#ended && this.#waiting.length < this.ahead) {
      try {
        const { value: turn, done } = await this.turns.next()
        if (done) this.#ended = true
        else this.#add((async () => ({ turn, item: await turn.load() }))())
      } catch (error) {
        this.#ended = true
        this.#add(Promise.reject(error))
      }
    }
    return this.#waiting.shift()
  }

  #add(loading: Promise<Loaded<T>>): void {
    loading.catch(() => {}) // thrown in its turn
    this.#waiting.push(loading)
  }

  /** Begins nothing more. */
  async end(): Promise<void> {
    this.#ended = true
    await this.turns.return?.()
  }
}

/**
 * Batches of the items, in their order. While one is used, the next is put together, and the items
 * after it are loaded: memory holds two batches and `ahead` items.
 */
export async function* assemble(
  source: Source,
  onBadItem: OpenDataOptions['onBadItem'],
  options: BatchOptions,
): AsyncGenerator<DataBatch, void, undefined> {
  const { signal } = options
  signal?.throwIfAborted()
  const items = new Lookahead(source.turns(options), source.ahead)
  const next = batchMaker(items, source, onBadItem, options)
  let coming = next()
  try {
    for (;;) {
      const asked = performance.now()
      const batch = await unlessAborted(coming, signal)
      if (batch === undefined) return
      batch.waited = (performance.now() - asked) / 1000
      coming = next()
      coming.catch(() => {}) // it is reported when it is asked for
      yield batch
    }
  } finally {
    const ended = items.end()
    // After an abort nothing is waited for: the caller's iterator may never answer.
    if (signal?.aborted) ended.catch(() => {})
    else await ended
  }
}

/** Makes one batch after the other; undefined when there are no more items. */
function batchMaker(
  items: Lookahead<Turn>,
  { kind, shape, length }: Source,
  onBadItem: OpenDataOptions['onBadItem'],
  { batchSize, signal, position: begin }: BatchOptions,
) {
  const size = shape[0] * shape[1] * shape[2]
  let position = begin
  const badItems = new BadItems(onBadItem, length)
  return async (): Promise<DataBatch | undefined> => {
    const x = new Float32Array(batchSize * size)
    const deviation = kind === 'features' ? new Float32Array(batchSize * size) : null
    const labels = new Int32Array(batchSize)
    const skipped: SkippedItem[] = []
    let rows = 0
    let copied = 0
    while (rows < batchSize) {
      const next = await items.next()
      signal?.throwIfAborted()
      if (next === undefined) break
      const { turn, item } = next
      position++
      if (typeof item === 'string') {
        skipped.push(badItems.bad(turn.name(), item))
        continue
      }
      badItems.good()
      x.set(item.x, rows * size)
      if (item.deviation) deviation?.set(item.deviation, rows * size)
      labels[rows++] = item.label
      copied += item.x.byteLength + (item.deviation?.byteLength ?? 0)
      if (copied < bytesPerTurn) continue
      copied = 0
      await setImmediate()
    }
    if (rows === 0) {
      badItems.end()
      return undefined
    }
    return {
      x: x.subarray(0, rows * size),
      deviation: deviation?.subarray(0, rows * size) ?? null,
      labels: labels.subarray(0, rows),
      position,
      waited: 0,
      skipped,
    }
  }
}

/** What the promise gives, unless the signal comes first. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason)
    if (signal.aborted) onAbort()
    signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}
