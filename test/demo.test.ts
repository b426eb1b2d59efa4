import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Expected } from './helpers/expected.js'
import { temporaryFolder } from './helpers/files.js'

const demo = fileURLToPath(new URL('../demo/demo.ts', import.meta.url))
const [size, enlargement, classes] = [32, 3, 10]
/** Of the reference's samples, which are of another model of the same data. */
const expectedSize = 16

function correlation(a: number[], b: number[]): number {
  const centred = (x: number[]) => {
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length
    return x.map((value) => value - mean)
  }
  const [p, q] = [centred(a), centred(b)]
  const dot = (x: number[], y: number[]) =>
    x.reduce((sum, value, i) => sum + value * (y[i] ?? 0), 0)
  return dot(p, q) / Math.sqrt(dot(p, p) * dot(q, q))
}

test('the demo makes a grid whose columns look like their classes', async () => {
  const out = path.join(temporaryFolder(), 'new', 'grid.png')
  const rows = 3
  const args = [`--rows=${rows}`, '--steps=20', '--seed=7', `--out=${out}`]
  const run = spawnSync(process.execPath, ['--import', import.meta.resolve('tsx'), demo, ...args], {
    encoding: 'utf8',
  })
  assert.is(run.status, 0, run.stderr)
  assert.match(run.stdout, /^columns +T-shirt\/top, Trouser, .*, Ankle boot$/m)
  assert.ok(run.stdout.endsWith(`picture  ${out}\n`), run.stdout)

  const { data, info } = await sharp(out).raw().toBuffer({ resolveWithObject: true })
  const side = size * enlargement
  assert.equal([info.width, info.height], [classes * side, rows * side])
  const grey = (x: number, y: number) => data[(y * info.width + x) * info.channels] as number

  // Enlarged without inventing anything: each pixel is a square of equal ones.
  for (let y = 0; y < info.height; y++) {
    for (let x = 0; x < info.width; x++) {
      const [left, top] = [x - (x % enlargement), y - (y % enlargement)]
      assert.is(grey(x, y), grey(left, top), `pixel ${x}, ${y}`)
    }
  }

  // The mean of a column, halved, against samples of the tests' model, one per class.
  const expected = await Expected.read('fashion_dit/expected.safetensors')
  const samples = expected.numbers('ddim50_guidance3')
  const pixels = Array.from({ length: expectedSize ** 2 }, (_, i) => i)
  const wanted = Array.from({ length: classes }, (_, label) =>
    pixels.map((i) => samples[label * expectedSize ** 2 + i] as number),
  )
  const factor = side / expectedSize
  const columns = Array.from({ length: classes }, (_, label) =>
    pixels.map((i) => {
      const [x, y] = [(i % expectedSize) * factor, Math.floor(i / expectedSize) * factor]
      let sum = 0
      for (let row = 0; row < rows; row++) {
        for (let j = 0; j < factor ** 2; j++) {
          const [across, down] = [x + (j % factor), y + Math.floor(j / factor)]
          sum += grey(label * side + across, row * side + down)
        }
      }
      return sum / (rows * factor ** 2)
    }),
  )
  const table = columns.map((column) => wanted.map((sample) => correlation(column, sample)))
  const own = table.map((row, label) => row[label] as number)
  const mean = (list: number[]) => list.reduce((a, b) => a + b, 0) / list.length
  const nearest = table.filter((row, label) => Math.max(...row) === row[label]).length
  const shown = table.map((row) => row.map((value) => value.toFixed(2)).join(' ')).join('\n')
  // Columns of one class in place of another have 0.5 and 1 of 10, noise has 0 and 1.
  assert.ok(mean(own) > 0.7 && nearest >= 5, `${mean(own)}, ${nearest} of ${classes}\n${shown}`)
})

test.run()
