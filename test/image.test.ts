import { readFileSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { imageGrid, RawImage } from '../lib/index.js'
import { runModule } from './helpers/child.js'
import { rejects, temporaryFolder } from './helpers/files.js'

/** An image whose bytes all differ from their neighbours. */
function picture(width: number, height: number, channels: number, start = 0): RawImage {
  const length = width * height * channels
  const data = Uint8Array.from({ length }, (_, i) => (start + i * 37) % 256)
  return new RawImage({ data, width, height, channels })
}

async function decoded(file: string | Buffer) {
  const { data, info } = await sharp(file).raw().toBuffer({ resolveWithObject: true })
  return {
    data: new Uint8Array(data),
    width: info.width,
    height: info.height,
    channels: info.channels,
  }
}

test('toPNG and toFile: the pixels come back', async () => {
  const folder = temporaryFolder()
  for (const channels of [1, 3]) {
    const image = picture(7, 5, channels)
    const png = await image.toPNG()
    assert.is(png.subarray(1, 4).toString(), 'PNG')
    // sharp reads a grey file as RGB.
    const { data, width, height, channels: read } = await decoded(png)
    assert.equal([width, height], [7, 5])
    const grey = data.filter((_, i) => i % read === 0)
    assert.equal(channels === 1 ? grey : data, image.data)
    const file = path.join(folder, `image${channels}.png`)
    await image.toFile(file)
    assert.ok(readFileSync(file).equals(png))
  }
})

test('toFile: webp and jpeg by the name, anything else refused', async () => {
  const folder = temporaryFolder()
  const image = picture(16, 8, 3)
  for (const [name, format] of [
    ['a.webp', 'webp'],
    ['a.jpg', 'jpeg'],
    ['a.JPEG', 'jpeg'],
  ] as const) {
    await image.toFile(path.join(folder, name))
    const info = await sharp(path.join(folder, name)).metadata()
    assert.equal([info.format, info.width, info.height], [format, 16, 8])
  }
  await rejects(() => image.toFile('a.gif'), 'ERR_DIT_OPTION', /ends in \.png, .*got 'a\.gif'/)
  await rejects(() => image.toFile('a'), 'ERR_DIT_OPTION', /ends in/)
  await rejects(() => image.toFile(5 as never), 'ERR_DIT_OPTION', /a path/)
  await rejects(() => image.toFile(path.join(folder, 'no/a.png')), 'ERR_DIT_FILE', /ENOENT/)
  const wide = picture(17000, 1, 3)
  await rejects(() => wide.toFile(path.join(folder, 'a.webp')), 'ERR_DIT_FILE', /too large/)
})

test('RawImage: wrong sizes are refused', () => {
  const data = new Uint8Array(12)
  assert.is(new RawImage({ data, width: 2, height: 2, channels: 3 }).seed, undefined)
  assert.throws(() => new RawImage({ data, width: 3, height: 2, channels: 3 }), /are 18 bytes.* 12/)
  assert.throws(() => new RawImage({ data, width: 0, height: 2, channels: 3 }), /Expected pixels/)
  assert.throws(() => new RawImage(undefined as never), /Expected pixels/)
  const floats = { data: new Float32Array(12), width: 2, height: 2, channels: 3 }
  assert.throws(() => new RawImage(floats as never), /Expected pixels/)
})

test('imageGrid: every image in its place', async () => {
  const images = [0, 1, 2, 3, 4].map((start) => picture(3, 2, 3, start * 50))
  const grid = await imageGrid(images, { columns: 2, gap: 1 })
  assert.equal([grid.width, grid.height, grid.channels], [7, 8, 3])
  const at = (x: number, y: number) => [...grid.data.slice((y * 7 + x) * 3, (y * 7 + x) * 3 + 3)]
  for (const [i, image] of images.entries()) {
    for (const [x, y] of [
      [0, 0],
      [2, 1],
    ] as const) {
      const from = (y * 3 + x) * 3
      assert.equal(at((i % 2) * 4 + x, Math.floor(i / 2) * 3 + y), [
        ...image.data.slice(from, from + 3),
      ])
    }
  }
  assert.equal(at(3, 0), [0, 0, 0])
  assert.equal(at(4, 6), [0, 0, 0]) // there is no sixth image

  const square = await imageGrid(images)
  assert.equal([square.width, square.height], [9, 4])
  const row = await imageGrid(images.slice(0, 2), { columns: 10 })
  assert.equal([row.width, row.height], [6, 2])

  await rejects(() => imageGrid([]), 'ERR_DIT_OPTION', /at least one image/)
  await rejects(() => imageGrid(images, { columns: 0 }), 'ERR_DIT_OPTION', /columns/)
  await rejects(() => imageGrid(images, { gap: -1 }), 'ERR_DIT_OPTION', /gap/)
  await rejects(() => imageGrid(images, { gap: 1e12 }), 'ERR_DIT_OPTION', /0 to 4096 for gap/)
  await rejects(() => imageGrid(null as never), 'ERR_DIT_OPTION', /at least one image/)
  await rejects(() => imageGrid([...images, picture(2, 2, 3)]), 'ERR_DIT_SHAPE', /images\[5\]/)
  await rejects(() => imageGrid([...images, picture(3, 2, 1)]), 'ERR_DIT_SHAPE', /3×2 with 1/)
})

test('imageGrid: the event loop has its turns while much is copied', async () => {
  const images = Array.from({ length: 20 }, () => picture(512, 512, 3))
  let turns = 0
  let ended = false
  const count = () => {
    turns++
    if (!ended) setImmediate(count)
  }
  setImmediate(count)
  await imageGrid(images)
  ended = true
  assert.ok(turns >= 10, `${turns} turns for 15 MiB`)
})

test('the library loads without sharp, and says what is missing when it is needed', async () => {
  const ended = await runModule(`
    import { register } from 'node:module'
    register('data:text/javascript,' + encodeURIComponent(\`
      export async function resolve(name, context, next) {
        if (name === 'sharp') throw new Error('there is no sharp')
        return next(name, context)
      }\`))
    const { RawImage } = await import('./lib/index.ts')
    const image = new RawImage({ data: new Uint8Array(3), width: 1, height: 1, channels: 3 })
    await image.toPNG().catch((error) => console.log(error.code, error.message, error.cause.message))
  `)
  assert.is(ended.status, 0, ended.stderr)
  assert.match(ended.stdout, /^ERR_DIT_PLATFORM .*npm install sharp.* there is no sharp\n$/)
})

test.run()
