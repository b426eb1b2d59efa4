// Images as bytes of a file.

import type { RawImage } from '../image.js'

/** How an image travels. @internal */
export type ImageFormat = 'png' | 'webp'

/** @internal */
export const mimes = { png: 'image/png', webp: 'image/webp' } as const

/** An image, made or remembered. @internal */
export interface EncodedImage {
  readonly format: ImageFormat
  readonly bytes: Buffer
  readonly width: number
  readonly height: number
}

/** @internal */
export async function encodeImage(image: RawImage, format: ImageFormat): Promise<EncodedImage> {
  const bytes = await (format === 'png' ? image.toPNG() : image.toWebP())
  return { format, bytes, width: image.width, height: image.height }
}

/** @internal */
export function dataUrl({ format, bytes }: EncodedImage): string {
  return `data:${mimes[format]};base64,${bytes.toString('base64')}`
}
