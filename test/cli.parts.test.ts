import { mkdirSync } from 'node:fs'
import path from 'node:path'
import { Writable } from 'node:stream'
import { InvalidArgumentError } from 'commander'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { decodeCost, forwardCost, parameterCount, weightBytes } from '../lib/cli/cost.js'
import { planOutput, writeImages } from '../lib/cli/outputs.js'
import { Progress } from '../lib/cli/progress.js'
import { columns, duration, scaled } from '../lib/cli/units.js'
import * as values from '../lib/cli/values.js'
import { completeConfig } from '../lib/formats/dit_config.js'
import { ditTensors } from '../lib/formats/dit_names.js'
import { resolveSource } from '../lib/formats/source.js'
import type { VaeConfig } from '../lib/formats/types.js'
import { vaeTensors } from '../lib/formats/vae_names.js'
import { DiT, RawImage } from '../lib/index.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'

// ---- values ----

type Reader = (text: string) => unknown
const readings: [name: string, read: Reader, good: [string, unknown][], bad: string[]][] = [
  [
    'integer',
    values.integer(0, 10),
    [
      ['0', 0],
      ['10', 10],
    ],
    ['', ' 1', '11', '-1', '0x1', '1e0', '1.0', 'ten', '99999999999999999999'],
  ],
  [
    'number',
    values.number,
    [
      ['4', 4],
      ['-1.5', -1.5],
      ['.5', 0.5],
      ['2.', 2],
      ['1e-3', 1e-3],
    ],
    ['', '.', '4x', '0x10', 'NaN', 'Infinity', '1e999', '1,5', ' 4'],
  ],
  [
    'seed',
    values.seed,
    [
      ['0', 0],
      ['9007199254740991', 9007199254740991],
      ['9007199254740992', 9007199254740992n],
      ['18446744073709551615', 18446744073709551615n],
    ],
    ['', '-1', '1.5', '18446744073709551616', '0x1', 'random'],
  ],
  [
    'labels',
    values.labels,
    [
      ['207', [207]],
      ['207, 360', [207, 360]],
      ['tabby cat,3', ['tabby cat', 3]],
    ],
    ['', ',', '1,,2', '1,'],
  ],
  [
    'latentSize',
    values.latentSize,
    [
      ['32', 32],
      ['32x48', [32, 48]],
    ],
    ['', '0', '32x', 'x32', '32x0', '3.5', '32x32x32', '-8'],
  ],
  [
    'guidanceChannels',
    values.guidanceChannels,
    [
      ['all', 'all'],
      ['3', 3],
    ],
    ['0', 'most', ''],
  ],
  ['interval', values.interval, [['0.1,0.8', [0.1, 0.8]]], ['', '0.1', '0,1,2', 'a,b', '0.1,']],
  [
    'config',
    values.config,
    [
      ['DiT-XL/2', 'DiT-XL/2'],
      ['{"heads": 4}', { heads: 4 }],
    ],
    ['{', '{heads: 4}'],
  ],
]

for (const [name, read, good, bad] of readings) {
  test(`${name}: reads what it should and refuses the rest`, () => {
    for (const [text, value] of good) assert.equal(read(text), value)
    for (const text of bad) {
      assert.throws(
        () => read(text),
        (error: unknown) => error instanceof InvalidArgumentError,
        `'${text}' was taken`,
      )
    }
  })
}

// ---- units ----

test('amounts have three digits and a prefix', () => {
  const expected: [number, string][] = [
    [0, '0 B'],
    [999, '999 B'],
    [999.6, '1.00 kB'],
    [1234, '1.23 kB'],
    [2.699e9, '2.70 GB'],
    [999e15, '999 PB'],
  ]
  for (const [value, text] of expected) assert.is(scaled(value, 'B'), text)
  assert.is(scaled(118.64e9, 'MAC', 4), '118.6 GMAC')
  assert.is(scaled(674.8e6, ''), '675 M')
})

test('times', () => {
  const expected: [number, string][] = [
    [0, '0 ms'],
    [0.4204, '420 ms'],
    [0.9996, '1.00 s'],
    [12.34, '12.3 s'],
    [59.96, '1 min 00 s'],
    [125, '2 min 05 s'],
    [3599.6, '1 h 00 min'],
    [7260, '2 h 01 min'],
  ]
  for (const [seconds, text] of expected) assert.is(duration(seconds), text)
})

test('columns are aligned', () => {
  assert.is(
    columns([
      ['a', '1'],
      ['long', '2'],
      ['', ''],
    ]),
    'a     1\nlong  2\n',
  )
})

// ---- progress ----

class Screen extends Writable {
  text = ''
  isTTY = false
  columns = 120

  override _write(chunk: Buffer, _: string, done: () => void): void {
    this.text += chunk.toString()
    done()
  }
}

function progressOn(screen: Screen) {
  let time = 0
  const stream = screen as unknown as typeof process.stderr
  const progress = new Progress({ stream, now: () => time })
  const at = (seconds: number, done: number) => {
    time = seconds
    progress.update('sampling', 'steps', done, 100)
  }
  return { progress, at }
}

test('without a terminal, progress is a line every five seconds and one at the end', () => {
  const screen = new Screen()
  const { progress, at } = progressOn(screen)
  for (let i = 0; i <= 50; i++) at(i / 4, 2 * i)
  progress.end()
  assert.equal(screen.text.split('\n'), [
    'sampling: 40 of 100 steps, 8 steps/s, 7.50 s left',
    'sampling: 80 of 100 steps, 8 steps/s, 2.50 s left',
    'sampling: 100 of 100 steps, 8 steps/s, 12.5 s',
    '',
  ])
})

test('what takes less than that says nothing', () => {
  const screen = new Screen()
  const { progress, at } = progressOn(screen)
  at(0, 0)
  at(4.9, 100)
  progress.end()
  assert.is(screen.text, '')
})

test('the rate is that of the last seconds', () => {
  const screen = new Screen()
  const { at } = progressOn(screen)
  for (let i = 0; i <= 40; i++) at(i, i)
  for (let i = 1; i <= 20; i++) at(40 + i, 40 + 2 * i)
  assert.match(screen.text, /^sampling: 40 of 100 steps, 1 steps\/s, 1 min 00 s left$/m)
  assert.match(screen.text, /^sampling: 80 of 100 steps, 2 steps\/s, 10\.0 s left$/m)
})

test('what is done at the first word does not count for the rate', () => {
  const screen = new Screen()
  const { progress, at } = progressOn(screen)
  for (let done = 20; done <= 100; done += 20) at(done, done)
  progress.end()
  assert.equal(screen.text.split('\n'), [
    'sampling: 40 of 100 steps, 1 steps/s, 1 min 00 s left',
    'sampling: 60 of 100 steps, 1 steps/s, 40.0 s left',
    'sampling: 80 of 100 steps, 1 steps/s, 20.0 s left',
    'sampling: 100 of 100 steps, 1 steps/s, 1 min 20 s',
    '',
  ])
})

test('a line in between changes no rate', () => {
  for (const isTTY of [false, true]) {
    const screen = new Screen()
    screen.isTTY = isTTY
    const { progress, at } = progressOn(screen)
    at(0, 0)
    at(6, 6)
    progress.say('by the way')
    at(12, 12)
    at(100, 100)
    progress.end()
    assert.match(screen.text, /by the way\n/)
    assert.match(screen.text, /sampling: 12 of 100 steps, 1 steps\/s, 1 min 28 s left/)
    assert.match(screen.text, /sampling: 100 of 100 steps, 1 steps\/s, 1 min 40 s/)
  }
})

test('on a terminal, progress is a bar', () => {
  const screen = new Screen()
  screen.isTTY = true
  const { progress, at } = progressOn(screen)
  at(0, 0)
  at(2, 50)
  at(4, 100)
  progress.end()
  assert.match(screen.text, /\[ +\] sampling: 0 of 100 steps/)
  assert.match(screen.text, /\[=+\] sampling: 100 of 100 steps, 25 steps\/s, 4\.00 s/)
  assert.ok(screen.text.endsWith('\n'))
})

test('quiet progress says nothing', () => {
  const screen = new Screen()
  screen.isTTY = true
  const progress = new Progress({ quiet: true, stream: screen as unknown as typeof process.stderr })
  progress.update('sampling', 'steps', 1, 2)
  progress.end()
  assert.is(screen.text, '')
})

// ---- outputs ----

const grey = (seed: number, label: number) =>
  new RawImage({ data: new Uint8Array(4), width: 2, height: 2, channels: 1 }, { seed, label })

test('a file is an image or a grid, a name with %d and a folder are files for each', async () => {
  const folder = temporaryFolder()
  const inside = (name: string) => path.join(folder, name)
  const images = [grey(5, 1), grey(6, 0), grey(7, 1)]
  const write = async (out: string) => writeImages(await planOutput(out), images)
  assert.equal(await write(inside('grid.png')), Array(3).fill(inside('grid.png')))
  assert.equal(
    await write(inside('%03d.jpg')),
    ['000', '001', '002'].map((number) => inside(`${number}.jpg`)),
  )
  const named = ['class1-seed5.png', 'class0-seed6.png', 'class1-seed7.png']
  assert.equal(
    await write(inside('new/folder/')),
    named.map((name) => inside(`new/folder/${name}`)),
  )
  mkdirSync(inside('there'))
  assert.equal(
    await write(inside('there')),
    named.map((name) => inside(`there/${name}`)),
  )
})

test('an output that cannot be is refused before anything is computed', async () => {
  const folder = temporaryFolder()
  await rejects(() => planOutput(path.join(folder, 'a.tiff')), 'ERR_DIT_OPTION', /--out.*tiff/)
  await rejects(() => planOutput(path.join(folder, 'no/a.png')), 'ERR_DIT_FILE', /no folder/)
  await rejects(() => planOutput(`${folder}/%d.png`, 2), 'ERR_DIT_OPTION', /--columns/)
})

// ---- cost ----

test('the cost of a forward pass is what the paper says', () => {
  // Peebles & Xie 2022, table 4: "Gflops", which are multiply-accumulates, to two digits.
  const paper: Record<string, number> = {
    'DiT-S/8': 0.36,
    'DiT-S/4': 1.41,
    'DiT-S/2': 6.06,
    'DiT-B/4': 5.56,
    'DiT-B/2': 23.01,
    'DiT-L/4': 19.7,
    'DiT-L/2': 80.71,
    'DiT-XL/8': 7.39,
    'DiT-XL/4': 29.05,
    'DiT-XL/2': 118.64,
  }
  for (const [preset, gmacs] of Object.entries(paper)) {
    const { macs, flops } = forwardCost(completeConfig(preset))
    assert.ok(Math.abs(macs / 1e9 - gmacs) <= 0.005 + 3e-4 * gmacs, `${preset}: ${macs}`)
    assert.is(flops, 2 * macs)
  }
  const { macs } = forwardCost(completeConfig('DiT-XL/2'), [64, 64])
  assert.ok(Math.abs(macs / 1e9 - 524.6) < 0.1, String(macs))
})

test('the cost of a decode is that of each weight at each pixel it is applied to', async () => {
  const { vae } = await resolveSource(fixture('diffusers_pipeline'))
  const config = vae?.config as VaeConfig
  const [height, width] = [8, 12]
  let macs = 0
  for (const { name, shape } of vaeTensors(config)) {
    const up = /^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)/.exec(name)
    if (!/^(decoder|post_quant_conv)\b.*weight$/.test(name) || shape.length === 1) continue
    const last = config.blockOutChannels.length - 1
    const doublings = up ? Number(up[1]) + (up[2] === 'upsamplers' ? 1 : 0) : 0
    const scale = 2 ** (name === 'decoder.conv_out.weight' ? last : doublings)
    macs += height * scale * width * scale * shape.reduce((product, n) => product * n, 1)
  }
  // The attention's two products have no weights.
  macs += 2 * (height * width) ** 2 * (config.blockOutChannels.at(-1) as number)
  assert.is(decodeCost(config, [height, width]).macs, macs)
})

test('parameters are counted without the table of positions', () => {
  const config = completeConfig('DiT-XL/2')
  const sources = ditTensors(config).map(({ name, shape }) => {
    const part = { file: '', offset: 0, dtype: 'F32' as const, shape, strides: [] }
    return { name, parts: [part] }
  })
  assert.is(parameterCount(sources), 675_129_632 - 256 * 1152)
})

for (const precision of ['fp32', 'bf16'] as const) {
  test(`the memory of the weights in ${precision} is what a loaded model has`, async () => {
    const file = fixture('fashion_dit/fashion.pt')
    const { dit } = await resolveSource(file)
    const [cpu] = await DiT.devices()
    const estimate = weightBytes(dit.tensors, precision)
    if (!cpu?.available || !cpu.precisions.includes(precision)) {
      // Cannot be loaded here; then it must at least be less than in fp32.
      assert.ok(estimate < weightBytes(dit.tensors, 'fp32'))
      return
    }
    await using model = await DiT.load(file, { precision, threads: 1 })
    const { weights } = model.memory()
    assert.ok(Math.abs(weights / estimate - 1) < 0.02, `${weights} bytes, not ${estimate}`)
  })
}

test.run()
