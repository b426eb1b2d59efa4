// Images that were made, for requests that ask for the same again. In memory: nothing can be left behind
// half written, and a restart begins empty.

import { LRUCache } from 'lru-cache'
import type { EncodedImage } from './encode.js'

/** What is kept beside the bytes: keys, objects; estimated. */
const bytesAround = 512

/** A bounded store of images by what they were made of. @internal */
export class ImageCache {
  readonly #images: LRUCache<string, EncodedImage> | undefined
  hits = 0
  misses = 0

  constructor(maxBytes: number) {
    if (maxBytes === 0) return
    this.#images = new LRUCache<string, EncodedImage>({
      maxSize: maxBytes,
      sizeCalculation: ({ bytes }, key) => bytes.length + 2 * key.length + bytesAround,
    })
  }

  get bytes(): number {
    return this.#images?.calculatedSize ?? 0
  }

  get enabled(): boolean {
    return this.#images !== undefined
  }

  get(key: string): EncodedImage | undefined {
    const found = this.#images?.get(key)
    if (found) this.hits++
    else this.misses++
    return found
  }

  set(key: string, image: EncodedImage): void {
    this.#images?.set(key, image)
  }
}
