// Items that the caller makes: an array, an iterable, or a function that gives one from a position on.

import { DiTError, invalidOption, show } from '../errors.js'
import { isFloat32Array, isUint8Array } from '../realms.js'
import { mirror } from './crop.js'
import { Decoder } from './decoder.js'
import { epochOrder } from './order.js'
import { type LoadedItem, type Source, shuffledTurns, type Turn } from './pipeline.js'
import { imageShape, itemLabel, pictureShape, type Shape } from './target.js'
import type { BatchOptions, OpenDataOptions, TrainingData } from './types.js'

type GivenItems = Exclude<TrainingData, string>
type ItemIterator = Iterator<unknown> | AsyncIterator<unknown>

/** Whether the value can be gone through with `for await`. */
function isIterable(value: unknown): value is Iterable<unknown> | AsyncIterable<unknown> {
  if (typeof value !== 'object' || value === null) return false
  return Symbol.iterator in value || Symbol.asyncIterator in value
}

/** The caller's items, from any position on. */
class ItemReader {
  readonly #data: GivenItems
  /** What was begun to see the first item. */
  #begun: { iterator: ItemIterator; first: IteratorResult<unknown> } | undefined
  #isRead = false

  constructor(data: GivenItems) {
    this.#data = data
  }

  /** The first item. Throws ERR_DIT_OPTION when there is none. */
  async peek(): Promise<unknown> {
    const iterator = this.#iterator(0)
    const first = await iterator.next()
    if (first.done) throw new DiTError('ERR_DIT_OPTION', 'Expected at least one item of data')
    if (typeof this.#data === 'function') await iterator.return?.()
    else this.#begun = { iterator, first }
    return first.value
  }

  /** The items after the first `position`. */
  async *from(position: number): AsyncGenerator<unknown, void, undefined> {
    const isFunction = typeof this.#data === 'function'
    const iterator = this.#begun?.iterator ?? this.#iterator(position)
    let next = this.#begun?.first ?? (await iterator.next())
    this.#begun = undefined
    this.#isRead = true
    let passed = isFunction ? position : 0
    try {
      for (; !next.done; next = await iterator.next()) if (passed++ >= position) yield next.value
    } finally {
      await iterator.return?.()
    }
  }

  /** Lets the caller clean up when nothing but the first item was read. */
  async close(): Promise<void> {
    await this.#begun?.iterator.return?.()
    this.#begun = undefined
  }

  #iterator(position: number): ItemIterator {
    const data = this.#data
    const items = typeof data === 'function' ? data(position) : data
    if (!isIterable(items)) throw invalidOption(`data(${position})`, 'an iterable of items', items)
    const iterator =
      Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]()
    if (this.#isRead && (iterator as unknown) === items) {
      throw new DiTError(
        'ERR_DIT_OPTION',
        'The items can be read only once, as those of a generator. Give a function that makes them',
      )
    }
    return iterator
  }
}

/** An item of the caller's, checked as far as all items must be the same. */
function checkItem(name: string, item: unknown): { image: unknown; label: unknown } {
  const { image, label } = (item ?? {}) as { image?: unknown; label?: unknown }
  const isImage = isFloat32Array(image) || isUint8Array(image) || typeof image === 'string'
  if (isImage) return { image, label }
  const expected = '{ image, label }, the image a Float32Array, Uint8Array or path,'
  throw invalidOption(name, expected, typeof item === 'object' ? image : item)
}

/** Whether the items are images or latents, by the first: both are told by how many numbers there are. */
function kindOf(image: unknown, model: OpenDataOptions['model']): 'images' | 'latents' {
  if (!isFloat32Array(image) || model.vae === undefined) return 'images'
  return image.length === count(latentShape(model)) ? 'latents' : 'images'
}

function latentShape({ channels, latentSize: [height, width] }: OpenDataOptions['model']): Shape {
  return [channels, height, width]
}

function count([channels, height, width]: Shape): number {
  return channels * height * width
}

/** Opens what the caller gives item by item as training data. */
export async function openItems(data: GivenItems, options: OpenDataOptions): Promise<Source> {
  if (typeof data !== 'function' && !isIterable(data)) {
    throw invalidOption(
      'data',
      'a folder, an iterable of items, or a function that gives one',
      data,
    )
  }
  const { model } = options
  const reader = new ItemReader(data)
  const decoder = new Decoder(options.workers)
  const first = checkItem('item 0', await reader.peek())
  const kind = kindOf(first.image, model)
  const shape = kind === 'latents' ? latentShape(model) : imageShape(model)

  const load = async (position: number, item: unknown, mirrored: boolean) => {
    const name = `item ${position}`
    const { image, label: given } = checkItem(name, item)
    const label = itemLabel(name, given, model)
    if (!isFloat32Array(image)) return decode(name, image as never, label, mirrored)
    checkNumbers(name, image, shape, model)
    if (!mirrored) return { x: image, deviation: null, label }
    const x = image.slice()
    mirror(x, shape[2])
    return { x, deviation: null, label }
  }
  const decode = async (
    name: string,
    image: Uint8Array | string,
    label: number,
    mirrored: boolean,
  ): Promise<LoadedItem | string> => {
    if (kind === 'latents') throw invalidOption(name, 'latents, as item 0 is,', image)
    const [channels, height, width] = pictureShape(model)
    const x = await decoder.decode({ image, channels, height, width, mirrored })
    return typeof x === 'string' ? x : { x, deviation: null, label }
  }
  // Mirrored latents are not the latents of a mirrored image.
  const flips = (flip: boolean) => flip && kind === 'images'
  async function* turns({ seed, position, flip }: BatchOptions): AsyncGenerator<Turn> {
    const { mirrored } = epochOrder(1, seed, 0)
    let at = position
    for await (const item of reader.from(position)) {
      const number = at++
      const isMirrored = flips(flip) && mirrored(number)
      yield { name: () => itemName(number, item), load: () => load(number, item, isMirrored) }
    }
  }
  const shuffled = (items: readonly unknown[], batch: BatchOptions) => {
    const indexed = {
      length: items.length,
      name: (item: number) => itemName(item, items[item]),
      load: (item: number, mirrored: boolean) => load(item, items[item], mirrored),
    }
    return shuffledTurns(indexed, { ...batch, flip: flips(batch.flip) })
  }
  const array = Array.isArray(data) ? [...data] : undefined
  return {
    kind,
    length: array?.length,
    shape,
    scale: 1,
    shift: 0,
    numClasses: undefined,
    classNames: [],
    fingerprint: {
      kind: `items: ${kind}`,
      shape: shape.join('×'),
      ...(array && { length: array.length }),
    },
    ahead: 4 * decoder.workers,
    turns: (batch) => (array ? shuffled(array, batch) : turns(batch)),
    async close() {
      await reader.close()
      await decoder.close()
    },
  }
}

/** `item 3`, or with its file where it is one. */
function itemName(number: number, item: unknown): string {
  const { image } = item as { image: unknown }
  return typeof image === 'string' ? `item ${number} (${image})` : `item ${number}`
}

function checkNumbers(
  name: string,
  image: Float32Array,
  shape: Shape,
  model: OpenDataOptions['model'],
): void {
  if (image.length === count(shape)) return
  const latents = model.vae ? `, or latents of [${latentShape(model).join(', ')}]` : ''
  throw new DiTError(
    'ERR_DIT_SHAPE',
    `Expected ${count(shape)} numbers, [${shape.join(', ')}]${latents}, for the image of ${name} but got ` +
      `${show(image.length)}. All items must be of one kind`,
  )
}
