// Training data from folders: of pictures, and of idx files.
// timeout: 120s
import { cpSync, mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openData } from '../lib/data/open.js'
import type { OpenData, OpenDataOptions } from '../lib/data/types.js'
import { sameBits } from './helpers/expected.js'
import { rejects, temporaryFolder } from './helpers/files.js'
import { contents, noise, pictureFolder, pixelModel, take } from './helpers/pictures.js'

const model = pixelModel(3, 16)

async function withData<T>(
  folder: string,
  options: Partial<OpenDataOptions>,
  use: (data: OpenData) => Promise<T>,
): Promise<T> {
  const data = await openData(folder, { model, onBadItem: 'skip', workers: 2, ...options })
  try {
    return await use(data)
  } finally {
    await data.close()
  }
}

/** Folders of pictures of one colour each: red tells the class, green the picture. */
async function colours(counts: Record<string, number>): Promise<string> {
  const folder = temporaryFolder()
  for (const [c, [name, count]] of Object.entries(counts).entries()) {
    mkdirSync(path.join(folder, name), { recursive: true })
    for (let i = 0; i < count; i++) {
      const background = { r: 20 * c, g: 10 * i, b: 0 }
      const picture = sharp({ create: { width: 20, height: 20, channels: 3, background } })
      await picture.png().toFile(path.join(folder, name, `${i}.png`))
    }
  }
  return folder
}

/** [red, green] of each picture of a batch of flat ones. */
function coloursOf(x: Float32Array): [red: number, green: number][] {
  const size = 16 * 16
  const byte = (at: number) => Math.round(((x[at] as number) + 1) * 127.5)
  return Array.from({ length: x.length / (3 * size) }, (_, i) => [
    byte(3 * i * size),
    byte((3 * i + 1) * size),
  ])
}

test('classes are subfolders in order of code points, pictures lie at any depth', async () => {
  // As UTF-16, U+10000 would come before U+FFEE.
  const folder = await colours({ B: 2, a: 1, b: 3, '\uffee': 1, '\u{10000}': 2 })
  mkdirSync(path.join(folder, 'a', 'deep', 'er'), { recursive: true })
  const [source, copy] = [
    path.join(folder, 'a', '0.png'),
    path.join(folder, 'a', 'deep', 'er', 'X.PNG'),
  ]
  cpSync(source, copy)
  symlinkSync(copy, path.join(folder, 'a', 'linked.png'))
  symlinkSync('..', path.join(folder, 'a', 'deep', 'loop'))
  writeFileSync(path.join(folder, 'a', 'notes.txt'), 'no picture')
  writeFileSync(path.join(folder, 'a', '._0.png'), 'hidden')
  mkdirSync(path.join(folder, '.hidden'))
  await withData(folder, {}, async (data) => {
    assert.equal(data.classNames, ['B', 'a', 'b', '\uffee', '\u{10000}'])
    assert.is(data.numClasses, 5)
    assert.is(data.kind, 'images')
    assert.is(data.length, 11)
    assert.equal(data.shape, [3, 16, 16])
    const [batch] = await take(data, 1, { batchSize: 11 })
    assert.ok(batch)
    for (const [i, [red]] of coloursOf(batch.x).entries())
      assert.is(red, 20 * (batch.labels[i] as number))
  })
})

test('every epoch has every picture once, in an order of its own', async () => {
  const folder = await colours({ a: 5, b: 8 })
  await withData(folder, {}, async (data) => {
    const [first, second] = await take(data, 2, { batchSize: 13 })
    const names = (x: Float32Array) => coloursOf(x).map(String)
    const one = names((first as { x: Float32Array }).x)
    const two = names((second as { x: Float32Array }).x)
    assert.is(new Set(one).size, 13)
    assert.equal([...one].sort(), [...two].sort())
    assert.not.equal(one, two)
    const [other] = await take(data, 1, { batchSize: 13, seed: 2n })
    assert.not.equal(names((other as { x: Float32Array }).x), one)
  })
})

/** Three classes of six pictures, three of which are damaged in three ways. */
async function damagedFolder(): Promise<{ folder: string; damaged: string[] }> {
  const folder = await pictureFolder(['a', 'b', 'c'], 6)
  const damaged = ['a/1.jpg', 'b/3.jpg', 'c/5.jpg'].map((name) => path.join(folder, name))
  truncateSync(damaged[0] as string, readFileSync(damaged[0] as string).length >> 1)
  writeFileSync(damaged[1] as string, 'this is no picture')
  writeFileSync(damaged[2] as string, '')
  return { folder, damaged }
}

test('the batches are the same with any number of threads, damaged pictures or not', async () => {
  const { folder, damaged } = await damagedFolder()
  const runs = await Promise.all(
    [1, 3].map((workers) =>
      withData(folder, { workers }, async (data) =>
        contents(await take(data, 9, { batchSize: 4 })),
      ),
    ),
  )
  assert.equal(runs[0], runs[1])
  const batches = runs[0] as ReturnType<typeof contents>
  assert.equal([...new Set(batches.flatMap(({ skipped }) => skipped))].sort(), damaged)
  let position = 0
  for (const batch of batches) {
    position += 4 + batch.skipped.length
    assert.is(batch.position, position)
    assert.is(batch.labels.length, 4)
  }
})

test('resumed at any position, the batches are those of an uninterrupted run', async () => {
  const { folder } = await damagedFolder()
  await withData(folder, {}, async (data) => {
    const whole = contents(await take(data, 10, { batchSize: 5 }))
    for (const [i, { position }] of whole.slice(0, -1).entries()) {
      const rest = await take(data, whole.length - i - 1, { batchSize: 5, position })
      assert.equal(contents(rest), whole.slice(i + 1), `from ${position}`)
    }
    // A long way off is as near as the beginning.
    for (const { reason } of (await take(data, 4, { batchSize: 5 })).flatMap((b) => b.skipped)) {
      assert.match(reason, /^Input .*(corrupt|unsupported|empty|premature)/)
    }
    const [far] = await take(data, 1, { batchSize: 5, position: 18e9 + 7 })
    assert.ok(far && far.position >= 18e9 + 12)
  })
})

test('half of the pictures are mirrored, others in every epoch', async () => {
  const folder = await pictureFolder(['a', 'b'], 16)
  await withData(folder, {}, async (data) => {
    const take3 = (flip: boolean) => take(data, 3, { batchSize: 32, flip })
    const [plain, flipped] = [await take3(false), await take3(true)]
    const size = 3 * 16 * 16
    const patterns = plain.map(({ x, labels }, epoch) => {
      assert.equal(labels, flipped[epoch]?.labels)
      return Array.from({ length: 32 }, (_, i) => {
        const own = x.slice(i * size, (i + 1) * size)
        const other = (flipped[epoch] as { x: Float32Array }).x.slice(i * size, (i + 1) * size)
        if (sameBits(own, other)) return false
        for (let row = 0; row < size; row += 16) own.subarray(row, row + 16).reverse()
        assert.ok(sameBits(own, other), `epoch ${epoch}, picture ${i}`)
        return true
      })
    })
    const count = patterns.flat().filter(Boolean).length
    assert.ok(count > 25 && count < 71, `${count} of 96 mirrored`)
    assert.not.equal(patterns[0], patterns[1])
  })
})

test('the next batch is made while this one is used, and no more than that', async () => {
  const folder = await pictureFolder(['a', 'b'], 16)
  await withData(folder, { workers: 1 }, async (data) => {
    const batches = data.batches({ batchSize: 8, seed: 1n, position: 0, flip: false })
    const waits: number[] = []
    for (let i = 0; i < 4; i++) {
      const { value } = await batches.next()
      assert.ok(value)
      waits.push(value.waited)
      await sleep(i === 0 ? 1500 : 100)
    }
    await batches.return()
    // The first waits for the threads to start, the second is there.
    assert.ok((waits[0] as number) > 0 && (waits[1] as number) < 0.05, waits.join(' '))
  })
})

test('a damaged picture ends the training when that is asked for', async () => {
  const { folder } = await damagedFolder()
  await withData(folder, { onBadItem: 'error' }, async (data) => {
    const action = () => take(data, 4, { batchSize: 5 })
    await rejects(action, 'ERR_DIT_FORMAT', /\/(a\/1|b\/3|c\/5)\.jpg cannot be used: .*skipped/)
  })
})

test('where all pictures are damaged there is an error, not an endless search', async () => {
  const folder = await pictureFolder(['a', 'b'], 3)
  for (const name of ['a', 'b']) {
    for (let i = 0; i < 3; i++) writeFileSync(path.join(folder, name, `${i}.jpg`), 'nothing')
  }
  await withData(folder, {}, async (data) => {
    await rejects(
      () => take(data, 1, { batchSize: 2 }),
      'ERR_DIT_FORMAT',
      /Not one of 6 items in a row/,
    )
  })
})

test('a picture that goes away after the folder was listed is passed over', async () => {
  const folder = await pictureFolder(['a', 'b'], 3)
  symlinkSync('nowhere', path.join(folder, 'a', 'broken.jpg'))
  await withData(folder, {}, async (data) => {
    assert.is(data.length, 7)
    const batches = await take(data, 1, { batchSize: 6 })
    const last = (await take(data, 1, { batchSize: 7 }))[0]
    const names = [...batches, last]
      .flatMap((batch) => batch?.skipped ?? [])
      .map(({ item }) => item)
    assert.ok(names.includes(path.join(folder, 'a', 'broken.jpg')), names.join(' '))
  })
})

test('an abort ends the wait with its reason', async () => {
  const folder = await pictureFolder(['a', 'b'], 8)
  await withData(folder, {}, async (data) => {
    const controller = new AbortController()
    const options = { batchSize: 4, seed: 1n, position: 0, flip: true, signal: controller.signal }
    const batches = data.batches(options)
    await batches.next()
    const reason = new Error('enough')
    controller.abort(reason)
    assert.is(
      await batches.next().then(
        () => undefined,
        (error) => error,
      ),
      reason,
    )
  })
})

test('folders that are none of training data', async () => {
  const open =
    (folder: string, options: Partial<OpenDataOptions> = {}) =>
    () =>
      openData(folder, { model, onBadItem: 'skip', ...options })
  await rejects(open('/no/such/folder'), 'ERR_DIT_FILE', /no such file or folder/)
  await rejects(open(''), 'ERR_DIT_OPTION', /Expected a path for data/)
  const empty = temporaryFolder()
  await rejects(open(empty), 'ERR_DIT_FILE', /no subfolders.*dit features.*train-images/)
  writeFileSync(path.join(empty, 'file'), '')
  await rejects(open(path.join(empty, 'file')), 'ERR_DIT_FILE', /is a file/)

  const folder = await pictureFolder(['cat', 'dog', 'owl'], 1)
  await rejects(
    open(folder, { model: pixelModel(3, 16, 2) }),
    'ERR_DIT_OPTION',
    /has 3 classes, the model 2/,
  )
  await rejects(open(folder, { model: pixelModel(4, 16) }), 'ERR_DIT_OPTION', /takes 4 channels/)
  await rejects(
    open(folder, { workers: 1.5 }),
    'ERR_DIT_OPTION',
    /an integer from 0 to 256 for workers/,
  )
  for (const name of ['bird', 'emu']) mkdirSync(path.join(folder, name))
  writeFileSync(path.join(folder, 'emu', 'readme.md'), 'no picture')
  await rejects(open(folder), 'ERR_DIT_FILE', /no JPEG.*class folders 'bird', 'emu'/)
})

test('a fingerprint changes with the names of the files', async () => {
  const folder = await pictureFolder(['a', 'b'], 2)
  const fingerprint = () => withData(folder, {}, async (data) => data.fingerprint)
  const before = await fingerprint()
  assert.equal(await fingerprint(), before)
  cpSync(path.join(folder, 'a', '0.jpg'), path.join(folder, 'b', '9.jpg'))
  const after = await fingerprint()
  assert.is(after.length, 5)
  assert.not.equal(after.names, before.names)
})

// ---- idx files ----

const [images, labels] = ['train-images-idx3-ubyte', 'train-labels-idx1-ubyte'] as const

function idx(shape: number[], bytes: Uint8Array): Buffer {
  const header = Buffer.alloc(4 + 4 * shape.length)
  header.writeUInt32BE(0x800 + shape.length)
  for (const [i, size] of shape.entries()) header.writeUInt32BE(size, 4 + 4 * i)
  return Buffer.concat([header, bytes])
}

/** Seven images of 5 rows of 4 pixels, image i of class i % 3. */
function idxFolder(end: '' | '.gz' = ''): { folder: string; pixels: Uint8Array } {
  const folder = temporaryFolder()
  const pixels = noise(7 * 20, 3)
  const pack = end === '' ? (bytes: Buffer) => bytes : gzipSync
  writeFileSync(path.join(folder, images + end), pack(idx([7, 5, 4], pixels)))
  const classes = Uint8Array.from({ length: 7 }, (_, i) => i % 3)
  writeFileSync(path.join(folder, labels + end), pack(idx([7], classes)))
  return { folder, pixels }
}

for (const end of ['', '.gz'] as const) {
  test(`idx files${end}: images in the middle of a black one`, async () => {
    const { folder, pixels } = idxFolder(end)
    await withData(folder, { model: pixelModel(3, 8) }, async (data) => {
      assert.is(data.length, 7)
      assert.is(data.numClasses, 3)
      assert.equal(data.shape, [3, 8, 8])
      const [batch] = await take(data, 1, { batchSize: 7, flip: false })
      assert.ok(batch)
      const seen = new Set<number>()
      for (let row = 0; row < 7; row++) {
        const x = batch.x.subarray(row * 192, (row + 1) * 192)
        const middle = Array.from({ length: 20 }, (_, i) => {
          return Math.round(((x[(1 + Math.floor(i / 4)) * 8 + 2 + (i % 4)] as number) + 1) * 127.5)
        })
        const image = Array.from({ length: 7 }, (_, i) => i).find((i) => {
          return middle.every((value, j) => value === pixels[20 * i + j])
        }) as number
        seen.add(image)
        assert.is(batch.labels[row], image % 3)
        const plane = x.subarray(0, 64)
        assert.ok(sameBits(plane, x.subarray(64, 128)) && sameBits(plane, x.subarray(128)))
        const black = [...plane].filter((value) => value === -1).length
        assert.is(black, 64 - 20 + middle.filter((value) => value === 0).length)
      }
      assert.is(seen.size, 7)

      const whole = contents(await take(data, 6, { batchSize: 3 }))
      const rest = contents(await take(data, 3, { batchSize: 3, position: 9 }))
      assert.equal(rest, whole.slice(3))
    })
  })
}

test('idx files that are damaged or do not fit', async () => {
  const refused = async (
    change: (folder: string) => void,
    code: Parameters<typeof rejects>[1],
    message: RegExp,
    of = pixelModel(1, 8),
  ) => {
    const { folder } = idxFolder()
    change(folder)
    await rejects(() => openData(folder, { model: of, onBadItem: 'skip' }), code, message)
  }
  const write = (name: string, bytes: Uint8Array) => (folder: string) =>
    writeFileSync(path.join(folder, name), bytes)
  const cut = (folder: string) => truncateSync(path.join(folder, images), 100)
  await refused(cut, 'ERR_DIT_FORMAT', /expected 156 bytes for 7×5×4 but got 100/)
  await refused(write(images, Buffer.alloc(3)), 'ERR_DIT_FORMAT', /no idx file/)
  await refused(
    write(labels, idx([7, 1], new Uint8Array(7))),
    'ERR_DIT_FORMAT',
    /no idx file.*1 dimensions/,
  )
  await refused(
    write(labels, idx([6], new Uint8Array(6))),
    'ERR_DIT_FORMAT',
    /6 labels for 7 images/,
  )
  await refused(write(images, idx([0, 5, 4], new Uint8Array())), 'ERR_DIT_FORMAT', /empty/)
  const unchanged = () => {}
  await refused(unchanged, 'ERR_DIT_SHAPE', /4×5, larger than the 4×4/, pixelModel(1, 4))
  await refused(unchanged, 'ERR_DIT_OPTION', /has 3 classes, the model 2/, pixelModel(1, 8, 2))

  const { folder } = idxFolder('.gz')
  writeFileSync(path.join(folder, `${labels}.gz`), 'no gzip')
  await rejects(() => openData(folder, { model, onBadItem: 'skip' }), 'ERR_DIT_FORMAT', /unzipped/)
})

test.run()
