// From a picture to a model's numbers: cut as ADM does it, whatever the file.
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import sharp, { type Sharp } from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type Bitmap, centreCrop, mirror, toModel } from '../lib/data/crop.js'
import { openData } from '../lib/data/open.js'
import { temporaryFolder } from './helpers/files.js'
import { noise, picture, pixelModel, take } from './helpers/pictures.js'

// ---- the crop, against its definition: sums over both dimensions at once, rounded once per resize ----

function bytes(data: Uint8Array): Uint8ClampedArray {
  return new Uint8ClampedArray(data.buffer, data.byteOffset, data.length)
}

function boxWeight(x: number): number {
  return x > -0.5 && x <= 0.5 ? 1 : 0
}

function cubicWeight(x: number): number {
  const t = Math.abs(x)
  if (t >= 2) return 0
  return t < 1 ? 1.5 * t ** 3 - 2.5 * t ** 2 + 1 : -0.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2
}

/** Each number along one dimension, from its definition: [before, from, after] to [before, to, after]. */
function plainPass(
  data: Uint8ClampedArray,
  [before, from, after]: [number, number, number],
  to: number,
  weight: (x: number) => number,
): Uint8ClampedArray {
  const out = new Uint8ClampedArray(before * to * after)
  const stretch = Math.max(1, from / to)
  for (let i = 0; i < out.length; i++) {
    const [b, t, a] = [Math.floor(i / after / to), Math.floor(i / after) % to, i % after]
    let [sum, total] = [0, 0]
    for (let k = 0; k < from; k++) {
      const w = weight((k + 0.5 - ((t + 0.5) * from) / to) / stretch)
      sum += w * (data[(b * from + k) * after + a] as number)
      total += w
    }
    out[i] = Math.min(255, Math.max(0, Math.round(sum / total)))
  }
  return out
}

/** Along the rows, then along the columns, as 8 bits after each. */
function plainResize(
  { data, width, height }: Bitmap,
  toHeight: number,
  toWidth: number,
  weight: (x: number) => number,
): Bitmap {
  const narrow = plainPass(data, [height, width, 3], toWidth, weight)
  const out = plainPass(narrow, [1, height, 3 * toWidth], toHeight, weight)
  return { data: out, width: toWidth, height: toHeight }
}

/** Dhariwal & Nichol's steps for a square of `size`. */
function plainCrop(image: Bitmap, size: number): Bitmap {
  let rest = image
  while (Math.min(rest.width, rest.height) >= 2 * size) {
    rest = plainResize(rest, Math.floor(rest.height / 2), Math.floor(rest.width / 2), boxWeight)
  }
  const scale = size / Math.min(rest.width, rest.height)
  rest = plainResize(
    rest,
    Math.round(rest.height * scale),
    Math.round(rest.width * scale),
    cubicWeight,
  )
  const [top, left] = [Math.floor((rest.height - size) / 2), Math.floor((rest.width - size) / 2)]
  const data = new Uint8ClampedArray(size * size * 3)
  for (let y = 0; y < size; y++) {
    const begin = ((top + y) * rest.width + left) * 3
    data.set(rest.data.subarray(begin, begin + size * 3), y * size * 3)
  }
  return { data, width: size, height: size }
}

test('the crop is that of its definition', () => {
  const cases: [width: number, height: number, size: number][] = [
    [16, 16, 16],
    [31, 17, 16],
    [40, 33, 16], // halved, one side odd
    [67, 65, 16], // halved twice, both odd
    [100, 30, 16], // wide
    [21, 90, 16], // tall
    [9, 7, 16], // enlarged
    [5, 9, 15], // by a whole number: some weights are zero
    [130, 131, 8],
  ]
  for (const [width, height, size] of cases) {
    const image = { data: bytes(noise(width * height * 3, width)), width, height }
    const got = centreCrop(image, size, size)
    const want = plainCrop(image, size)
    assert.equal([got.width, got.height], [size, size])
    assert.is(got.data.length, want.data.length)
    const off = [...want.data].map((value, i) => Math.abs(value - (got.data[i] as number)))
    const others = off.filter((distance) => distance > 0).length
    const what = `${width}×${height}: at most ${Math.max(...off)}, ${others} of ${off.length} differ`
    assert.ok(Math.max(...off) <= 1 && others <= off.length / 100, what)
    if (process.env.DIT_TEST_FIGURES) console.log(what)
  }
})

test('a picture of the right size is untouched, a flat one stays flat', () => {
  const image = { data: bytes(noise(16 * 16 * 3, 1)), width: 16, height: 16 }
  assert.equal([...centreCrop(image, 16, 16).data], [...image.data])
  const flat = { data: new Uint8ClampedArray(53 * 37 * 3).fill(200), width: 53, height: 37 }
  assert.ok(centreCrop(flat, 8, 8).data.every((value) => value === 200))
})

test('for a target that is not square, as large a part as fits', () => {
  // Rows numbered 0 to 63: a target of 8 rows of 16 pixels is the middle half of them.
  const data = Uint8ClampedArray.from({ length: 64 * 64 * 3 }, (_, i) => 4 * Math.floor(i / 192))
  const { data: out, width, height } = centreCrop({ data, width: 64, height: 64 }, 8, 16)
  assert.equal([width, height], [16, 8])
  const rows = Array.from({ length: 8 }, (_, y) => out[48 * y] as number)
  assert.ok(
    rows.every((value, y) => Math.abs(value - (16 * (y + 4) + 6)) <= 1),
    rows.join(' '),
  )
})

test('numbers are value / 127.5 - 1, planes of channels; one channel is the luminance', () => {
  const data = Uint8ClampedArray.of(0, 255, 51, 255, 0, 102)
  const image = { data, width: 2, height: 1 }
  const near = (got: Float32Array, want: number[]) => {
    assert.is(got.length, want.length)
    for (const [i, value] of want.entries()) assert.ok(Math.abs((got[i] as number) - value) < 1e-6)
  }
  near(toModel(image, 3), [-1, 1, 1, -1, -0.6, -0.2])
  const luminance = [0.587 * 255 + 0.114 * 51, 0.299 * 255 + 0.114 * 102]
  near(
    toModel(image, 1),
    luminance.map((value) => value / 127.5 - 1),
  )

  const mirrored = Float32Array.of(1, 2, 3, 4, 5, 6)
  mirror(mirrored, 3)
  assert.equal([...mirrored], [3, 2, 1, 6, 5, 4])
})

// ---- files of all kinds ----

/** The numbers of one file, as a model gets them. */
async function read(file: Sharp | Buffer, end: string, channels = 3, size = 8) {
  const folder = temporaryFolder()
  mkdirSync(path.join(folder, 'only'))
  writeFileSync(
    path.join(folder, 'only', `file.${end}`),
    Buffer.isBuffer(file) ? file : await file.toBuffer(),
  )
  const data = await openData(folder, {
    model: pixelModel(channels, size),
    onBadItem: 'error',
    workers: 1,
  })
  try {
    const [batch] = await take(data, 1, { batchSize: 1, flip: false })
    return batch?.x as Float32Array
  } finally {
    await data.close()
  }
}

/** The value of a channel at a place, as a byte. */
function at(x: Float32Array, channel: number, row: number, column: number, size = 8): number {
  return ((x[(channel * size + row) * size + column] as number) + 1) * 127.5
}

function near(got: number, want: number, within: number, what: string): void {
  assert.ok(Math.abs(got - want) <= within, `${what}: ${got}, expected ${want}`)
}

const flat = (
  background: { r: number; g: number; b: number; alpha?: number },
  channels: 3 | 4 = 3,
) => sharp({ create: { width: 8, height: 8, channels, background } })

test('JPEG, PNG and WebP, in colour and grey', async () => {
  const colour = { r: 200, g: 100, b: 50 }
  for (const end of ['jpeg', 'png', 'webp'] as const) {
    const x = await read(flat(colour)[end](), end)
    for (const [c, want] of [200, 100, 50].entries()) near(at(x, c, 3, 3), want, 3, `${end} ${c}`)
    const one = await read(flat(colour)[end](), end, 1)
    near(at(one, 0, 3, 3), 0.299 * 200 + 0.587 * 100 + 0.114 * 50, 3, `${end}, one channel`)
  }
  const grey = await read(flat({ r: 90, g: 90, b: 90 }).toColourspace('b-w').png(), 'png')
  for (const c of [0, 1, 2]) near(at(grey, c, 5, 5), 90, 1, 'grey')
})

test('what is transparent becomes white', async () => {
  const clear = await read(flat({ r: 10, g: 200, b: 30, alpha: 0 }, 4).png(), 'png')
  for (const c of [0, 1, 2]) near(at(clear, c, 0, 0), 255, 0.01, 'clear')
  const half = await read(flat({ r: 0, g: 0, b: 0, alpha: 0.5 }, 4).png(), 'png')
  near(at(half, 0, 0, 0), 127.5, 1.5, 'half')
})

test('16 bits are read as 8, CMYK as RGB', async () => {
  const values = Uint16Array.from(
    { length: 64 * 3 },
    (_, i) => [60000, 30000, 5000][i % 3] as number,
  )
  const raw = { width: 8, height: 8, channels: 3 } as const
  const deep = await sharp(values, { raw }).toColourspace('rgb16').png().toBuffer()
  assert.is((await sharp(deep).metadata()).depth, 'ushort')
  const x = await read(deep, 'png')
  for (const [c, want] of [60000, 30000, 5000].entries())
    near(at(x, c, 0, 0), want / 257, 1.5, '16 bits')

  const cmyk = await flat({ r: 220, g: 40, b: 40 }).toColourspace('cmyk').jpeg().toBuffer()
  assert.is((await sharp(cmyk).metadata()).space, 'cmyk')
  const red = await read(cmyk, 'jpg')
  assert.ok(at(red, 0, 0, 0) > at(red, 1, 0, 0) + 100, 'red')
})

test('a picture is turned as its EXIF says', async () => {
  // Left half black, right half white; orientation 6: turn clockwise, so white is below.
  const data = Uint8Array.from({ length: 64 }, (_, i) => (i % 8 < 4 ? 0 : 255))
  const upright = sharp(data, { raw: { width: 8, height: 8, channels: 1 } })
  const x = await read(upright.withMetadata({ orientation: 6 }).jpeg({ quality: 100 }), 'jpg')
  near(at(x, 0, 0, 4), 0, 6, 'above')
  near(at(x, 0, 7, 4), 255, 6, 'below')
})

test('a larger picture is cut as decoded pixels are', async () => {
  const file = await picture(83, 50, 4).png().toBuffer()
  const { data, info } = await sharp(file).raw().toBuffer({ resolveWithObject: true })
  const want = toModel(plainCrop({ ...info, data: bytes(data) }, 16), 3)
  const got = await read(file, 'png', 3, 16)
  for (const [i, value] of want.entries())
    near((got[i] as number) * 127.5, value * 127.5, 2.01, String(i))
})

test.run()
