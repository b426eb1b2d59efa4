// Training data that the caller makes item by item.
import { setImmediate, setTimeout as sleep } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openData } from '../lib/data/open.js'
import type {
  DataBatch,
  OpenData,
  OpenDataOptions,
  TrainingData,
  TrainingItem,
} from '../lib/data/types.js'
import { rejects } from './helpers/files.js'
import { contents, picture, pictureFolder, pixelModel, take } from './helpers/pictures.js'

const model = pixelModel(1, 4)

/** Image i has i in every pixel but the first of each row, which has -1. */
function item(i: number): TrainingItem {
  const image = Float32Array.from({ length: 16 }, (_, at) => (at % 4 === 0 ? -1 : i))
  return { image, label: i % 10 }
}

function* numbered(count: number, from = 0): Generator<TrainingItem> {
  for (let i = from; i < count; i++) yield item(i)
}

async function* slowly(count: number): AsyncGenerator<TrainingItem> {
  for (const one of numbered(count)) {
    await setImmediate()
    yield one
  }
}

async function withItems<T>(
  items: TrainingData,
  options: Partial<OpenDataOptions>,
  use: (data: OpenData) => Promise<T>,
): Promise<T> {
  const data = await openData(items, { model, onBadItem: 'skip', workers: 1, ...options })
  try {
    return await use(data)
  } finally {
    await data.close()
  }
}

const forms: [name: string, make: () => TrainingData][] = [
  ['a generator', () => numbered(10)],
  ['an async generator', () => slowly(10)],
  ['a function', () => (position) => numbered(10, position)],
]

for (const [name, make] of forms) {
  test(`${name}: items in their order, the last batch smaller`, async () => {
    await withItems(make(), {}, async (data) => {
      assert.equal([data.kind, data.length, data.shape], ['images', undefined, [1, 4, 4]])
      const batches = await take(data, 99, { batchSize: 4, flip: false })
      assert.equal(
        batches.map(({ labels }) => [...labels]),
        [
          [0, 1, 2, 3],
          [4, 5, 6, 7],
          [8, 9],
        ],
      )
      assert.equal(
        batches.map(({ position }) => position),
        [4, 8, 10],
      )
      assert.equal(
        batches.map(({ x }) => x.length),
        [64, 64, 32],
      )
      assert.is((batches[1] as { x: Float32Array }).x[17], 5)
    })
  })

  test(`${name}: from a position on, the rest is the same`, async () => {
    const whole = await withItems(make(), {}, async (data) =>
      contents(await take(data, 9, { batchSize: 2 })),
    )
    const rest = await withItems(make(), {}, async (data) => {
      return contents(await take(data, 9, { batchSize: 2, position: 4 }))
    })
    assert.equal(rest, whole.slice(2))
    const mirrored = whole
      .flatMap(({ x }) => [...x].filter((_, at) => at % 16 === 3))
      .filter((v) => v === -1)
    assert.ok(mirrored.length > 0 && mirrored.length < 10, `${mirrored.length} of 10 mirrored`)
  })
}

const labelsOf = async (data: OpenData, count: number, options: Parameters<typeof take>[2]) =>
  (await take(data, count, options)).map(({ labels }) => [...labels])

test('an array: epoch after epoch, each in an order of its own', async () => {
  const items = [...numbered(10)]
  const all = [...items.keys()]
  await withItems(items, {}, async (data) => {
    items.length = 0 // what was opened stays
    assert.equal([data.kind, data.length], ['images', 10])
    const batches = await labelsOf(data, 6, { batchSize: 5, flip: false })
    const epochs = [0, 2, 4].map((i) => batches.slice(i, i + 2).flat())
    for (const epoch of epochs) assert.equal(epoch.toSorted(), all)
    assert.is(new Set([all, ...epochs].map(String)).size, 4, 'all orders differ')
    assert.equal(await labelsOf(data, 6, { batchSize: 5, flip: false }), batches)
    const other = await labelsOf(data, 6, { batchSize: 5, flip: false, seed: 9n })
    assert.not.equal(other, batches)
    // From a position on, beyond an epoch's end.
    const rest = await labelsOf(data, 2, { batchSize: 5, flip: false, position: 15 })
    assert.equal(rest, batches.slice(3, 5))
  })
})

test('an array: half of its images are mirrored, other ones in each epoch', async () => {
  const mirrored = ({ x }: DataBatch) => {
    return Array.from({ length: 10 }, (_, i) => x[16 * i] !== -1)
  }
  await withItems([...numbered(10)], {}, async (data) => {
    const epochs = await take(data, 4, { batchSize: 10, flip: true })
    const flips = epochs.flatMap(mirrored)
    const count = flips.filter(Boolean).length
    assert.ok(count > 8 && count < 32, `${count} of 40 mirrored`)
  })
})

test('an array: what is damaged is passed over, every time', async () => {
  const items = [...numbered(3), { image: new Uint8Array(4), label: 0 }]
  await withItems(items, {}, async (data) => {
    const batches = await take(data, 2, { batchSize: 3, flip: false })
    const named = (n: number) => (batches[n] as DataBatch).labels.toSorted()
    assert.equal([...named(0)], [0, 1, 2])
    assert.equal(
      batches.flatMap(({ skipped }) => skipped.map(({ item }) => item)),
      ['item 3', 'item 3'],
    )
  })
})

test('a function is asked for what follows a position, and its iterators are closed', async () => {
  const asked: number[] = []
  let closed = 0
  function* counted(position: number): Generator<TrainingItem> {
    asked.push(position)
    try {
      yield* numbered(1000, position)
    } finally {
      closed++
    }
  }
  await withItems(counted, {}, async (data) => {
    await take(data, 2, { batchSize: 4, position: 40 })
    assert.equal(asked, [0, 40])
  })
  assert.is(closed, 2)
})

test('items are asked for a little ahead, and no further', async () => {
  let given = 0
  function* counted(): Generator<TrainingItem> {
    for (const one of numbered(1000)) {
      given++
      yield one
    }
  }
  await withItems(counted(), { workers: 1 }, async (data) => {
    const batches = data.batches({ batchSize: 8, seed: 1n, position: 0, flip: false })
    await batches.next()
    await sleep(50)
    // Two batches and four items for the one thread.
    assert.ok(given >= 16 && given <= 2 * 8 + 4, String(given))
    const before = given
    await sleep(50)
    assert.is(given, before)
    await batches.next()
    await sleep(50)
    assert.ok(given <= before + 8, String(given))
    await batches.return()
  })
})

test('the event loop has its turn while large batches are put together', async () => {
  const image = new Float32Array(3 * 256 * 256)
  const items = () => Array.from({ length: 96 }, () => ({ image, label: 0 }))
  await withItems(items, { model: pixelModel(3, 256) }, async (data) => {
    let turns = 0
    let counting = true
    const count = async () => {
      for (; counting; turns++) await setImmediate()
    }
    const counted = count()
    const [batch] = await take(data, 1, { batchSize: 96 })
    counting = false
    await counted
    assert.is(batch?.labels.length, 96)
    assert.ok(turns >= 40, `${turns} turns in 75 MB`)
  })
})

test('latents are told from images by how many numbers they have', async () => {
  const vae = { inChannels: 3, downscale: 8, scalingFactor: 0.18215, shiftFactor: 0 }
  const latentModel = { ...pixelModel(4, 2), vae }
  const of = (length: number) => [{ image: Float32Array.from({ length }, (_, i) => i), label: 1 }]
  await withItems(of(16), { model: latentModel }, async (data) => {
    assert.equal([data.kind, data.shape, data.scale, data.shift], ['latents', [4, 2, 2], 1, 0])
    for (const seed of [1n, 2n, 3n, 4n]) {
      const [batch] = await take(
        await openData(of(16), { model: latentModel, onBadItem: 'skip' }),
        1,
        {
          batchSize: 1,
          seed,
        },
      )
      assert.equal([...(batch?.x ?? [])], [...Array(16).keys()], 'never mirrored')
    }
  })
  await withItems(of(768), { model: latentModel }, async (data) => {
    assert.equal([data.kind, data.shape], ['images', [3, 16, 16]])
  })
})

test('bytes and paths are decoded, what is damaged passed over', async () => {
  const folder = await pictureFolder(['a'], 2)
  const bytes = await picture(30, 30, 5).png().toBuffer()
  const items: TrainingItem[] = [
    { image: new Uint8Array(bytes), label: 3 },
    { image: `${folder}/a/0.jpg`, label: 'two' },
    { image: `${folder}/a/no.jpg`, label: 1 },
    { image: new Uint8Array(10), label: 1 },
    { image: new Float32Array(3 * 64), label: 4 },
  ]
  const named = { ...pixelModel(3, 8), classNames: { 2: 'two' } }
  const runs = await Promise.all(
    [1, 3].map((workers) =>
      withItems(items.values(), { model: named, workers }, async (data) =>
        contents(await take(data, 9, { batchSize: 5 })),
      ),
    ),
  )
  assert.equal(runs[0], runs[1])
  const [batch] = runs[0] as ReturnType<typeof contents>
  assert.equal([...(batch?.labels ?? [])], [3, 2, 4])
  assert.equal(batch?.skipped, [`item 2 (${folder}/a/no.jpg)`, 'item 3'])
  const strict = () =>
    withItems(items.values(), { model: named, onBadItem: 'error' }, (data) =>
      take(data, 9, { batchSize: 5 }),
    )
  await rejects(strict, 'ERR_DIT_FORMAT', /item 2 \(.*no.jpg\) cannot be used/)
  const bad = [{ image: new Uint8Array(4), label: 1 }]
  await rejects(
    () => withItems(bad, { model: named }, (data) => take(data, 1, { batchSize: 5 })),
    'ERR_DIT_FORMAT',
    /Not one of 1 items in a row could be used/,
  )
})

test('wrong items are named', async () => {
  const wrong: [item: unknown, code: Parameters<typeof rejects>[1], message: RegExp][] = [
    [
      { image: new Float32Array(16), label: 10 },
      'ERR_DIT_OPTION',
      /class from 0 to 9 for the label of item 3 but got 10/,
    ],
    [{ image: new Float32Array(16), label: -1 }, 'ERR_DIT_OPTION', /label of item 3 but got -1/],
    [{ image: new Float32Array(16), label: 'cat' }, 'ERR_DIT_OPTION', /label of item 3/],
    [
      { image: new Float32Array(16) },
      'ERR_DIT_OPTION',
      /a class number or a class name for the label of item 3/,
    ],
    [
      { image: new Float32Array(15), label: 1 },
      'ERR_DIT_SHAPE',
      /Expected 16 numbers, \[1, 4, 4\], for the image of item 3 but got 15/,
    ],
    [{ image: [1, 2], label: 1 }, 'ERR_DIT_OPTION', /\{ image, label \}.*item 3/],
    [undefined, 'ERR_DIT_OPTION', /\{ image, label \}.*item 3/],
  ]
  for (const [one, code, message] of wrong) {
    const items = [...numbered(3), one as TrainingItem]
    await rejects(
      () => withItems(items, {}, (data) => take(data, 9, { batchSize: 2 })),
      code,
      message,
    )
  }
})

test('what cannot be read as items is refused', async () => {
  const open = (items: unknown) => () =>
    openData(items as TrainingData, { model, onBadItem: 'skip' })
  await rejects(open([]), 'ERR_DIT_OPTION', /at least one item/)
  await rejects(open(undefined), 'ERR_DIT_OPTION', /a folder, an iterable of items, or a function/)
  await rejects(open(12), 'ERR_DIT_OPTION', /but got 12/)
  await rejects(
    open(() => 12),
    'ERR_DIT_OPTION',
    /iterable of items for data\(0\) but got 12/,
  )
  await rejects(
    () =>
      withItems(numbered(10), {}, async (data) => {
        await take(data, 1, { batchSize: 2 })
        await take(data, 1, { batchSize: 2 })
      }),
    'ERR_DIT_OPTION',
    /only once/,
  )
})

test('what the caller throws reaches the caller, in its turn', async () => {
  const broken = new Error('the database is gone')
  function* failing(): Generator<TrainingItem> {
    yield* numbered(5)
    throw broken
  }
  await withItems(failing(), {}, async (data) => {
    const batches = data.batches({ batchSize: 2, seed: 1n, position: 0, flip: false })
    for (const labels of [
      [0, 1],
      [2, 3],
    ]) {
      const { value } = await batches.next()
      assert.equal([...(value?.labels ?? [])], labels)
    }
    const error = await batches.next().then(
      () => undefined,
      (reason) => reason,
    )
    assert.is(error, broken)
  })
})

test('an abort is not kept waiting by items that never come', async () => {
  async function* stuck(): AsyncGenerator<TrainingItem> {
    yield* numbered(3)
    await new Promise(() => {})
  }
  await withItems(stuck(), {}, async (data) => {
    const signal = AbortSignal.timeout(50)
    const batches = data.batches({ batchSize: 2, seed: 1n, position: 0, flip: false, signal })
    const idle = setInterval(() => {}, 10)
    const error = await batches.next().then(
      () => undefined,
      (reason) => reason,
    )
    clearInterval(idle)
    assert.is(error, signal.reason)
  })
})

test.run()
