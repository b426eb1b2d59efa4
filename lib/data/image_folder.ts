// A folder with one subfolder a class.

import path from 'node:path'
import { DiTError, show } from '../errors.js'
import { Decoder } from './decoder.js'
import { type LoadedItem, type Source, shuffledTurns } from './pipeline.js'
import { checkClassCount, type PictureShape, pictureShape } from './target.js'
import type { OpenDataOptions } from './types.js'
import type { Listing } from './worker.js'

/** The pictures of a folder, decoded in threads when they are asked for. */
export class ImageFolder {
  readonly #decoder: Decoder
  readonly #listing: Listing

  private constructor(
    readonly folder: string,
    decoder: Decoder,
    listing: Listing,
  ) {
    this.#decoder = decoder
    this.#listing = listing
  }

  /**
   * Lists the folder. Rejects with ERR_DIT_FILE when it cannot be read, has no class folders, or one of
   * them has no pictures.
   */
  static async open(folder: string, workers: number | undefined): Promise<ImageFolder> {
    const decoder = new Decoder(workers)
    try {
      const listing = await decoder.list(folder)
      checkListing(folder, listing)
      return new ImageFolder(folder, decoder, listing)
    } catch (error) {
      await decoder.close()
      throw error
    }
  }

  get length(): number {
    return this.#listing.labels.length
  }

  get classes(): readonly string[] {
    return this.#listing.classes
  }

  /** Of the names of classes and files. */
  get hash(): string {
    return this.#listing.hash
  }

  /** Pictures that are decoded at once, or wait for a thread. */
  get ahead(): number {
    return 4 * this.#decoder.workers
  }

  label(item: number): number {
    return this.#listing.labels[item] as number
  }

  /** The path of a picture. */
  name(item: number): string {
    const { names, starts } = this.#listing
    const bytes = names.subarray(starts[item], (starts[item + 1] as number) - 1) // without its \0
    return path.join(
      this.folder,
      Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString(),
    )
  }

  /** A picture, cut to a model's shape, or why it cannot be used. */
  async load(item: number, shape: PictureShape, mirrored: boolean): Promise<LoadedItem | string> {
    const [channels, height, width] = shape
    const image = this.name(item)
    const x = await this.#decoder.decode({ image, channels, height, width, mirrored })
    return typeof x === 'string' ? x : { x, deviation: null, label: this.label(item) }
  }

  close(): Promise<void> {
    return this.#decoder.close()
  }
}

function checkListing(folder: string, { classes, counts }: Listing): void {
  const where = path.resolve(folder)
  if (classes.length === 0) {
    throw new DiTError(
      'ERR_DIT_FILE',
      `${where} has no subfolders. Expected one for each class, with JPEG, PNG or WebP files in it; a ` +
        "folder that `dit features` wrote; or MNIST's train-images-idx3-ubyte and train-labels-idx1-ubyte",
    )
  }
  const empty = classes.filter((_, i) => counts[i] === 0)
  if (empty.length === 0) return
  const more = empty.length > 3 ? ` and ${empty.length - 3} more` : ''
  throw new DiTError(
    'ERR_DIT_FILE',
    `${where}: no JPEG, PNG or WebP files in the class folder${empty.length > 1 ? 's' : ''} ` +
      `${empty.slice(0, 3).map(show).join(', ')}${more}. Fill or remove what is no class`,
  )
}

/** Opens a folder of class folders as training data. */
export async function openImageFolder(
  folder: string,
  { model, workers }: OpenDataOptions,
): Promise<Source> {
  const shape = pictureShape(model)
  const images = await ImageFolder.open(folder, workers)
  const { length, classes, hash } = images
  try {
    checkClassCount(folder, classes.length, model)
  } catch (error) {
    await images.close()
    throw error
  }
  const items = {
    length,
    name: (item: number) => images.name(item),
    load: (item: number, mirrored: boolean) => images.load(item, shape, mirrored),
  }
  return {
    kind: 'images',
    length,
    shape,
    scale: 1,
    shift: 0,
    numClasses: classes.length,
    classNames: classes,
    fingerprint: {
      kind: 'folder',
      length,
      classes: classes.length,
      shape: shape.join('×'),
      names: hash,
    },
    ahead: images.ahead,
    turns: (options) => shuffledTurns(items, options),
    close: () => images.close(),
  }
}
