// node --import tsx demo/loss_curve.ts runs/x/metrics.jsonl loss.png
//
// Draws the losses of a training from its metrics.jsonl: of all timesteps, and of each quarter of them,
// the means of some 150 parts of it.

import { readFileSync } from 'node:fs'
import sharp from 'sharp'
import type { StepEvent } from '../lib/index.js'

const [width, height] = [900, 480]
const frame = { left: 70, top: 20, right: width - 190, bottom: height - 50 }

const [metrics, out] = process.argv.slice(2)
if (metrics === undefined || out === undefined) {
  throw new Error('usage: node --import tsx demo/loss_curve.ts metrics.jsonl out.png')
}
const steps = readFileSync(metrics, 'utf8')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as StepEvent)
  .filter(({ type, outcome }) => type === 'step' && outcome === 'applied')
if (steps.length < 2) throw new Error(`${metrics} has no steps to draw`)

const curves: [name: string, colour: string, of: (event: StepEvent) => number | null][] = [
  ['all timesteps', '#000', ({ loss }) => loss],
  ...['0–249', '250–499', '500–749', '750–999'].map((name, quarter): (typeof curves)[number] => [
    `t in ${name}`,
    ['#d62728', '#ff7f0e', '#2ca02c', '#1f77b4'][quarter] as string,
    ({ quartileLoss }) => quartileLoss[quarter] as number | null,
  ]),
]
const all = curves.flatMap(([, , of]) => steps.map(of)).filter((loss) => loss !== null && loss > 0)
const decades = [Math.min, Math.max].map((pick, i) => {
  const exponent = Math.log10(pick(...(all as number[])))
  return i === 0 ? Math.floor(exponent) : Math.ceil(exponent)
}) as [number, number]
const last = (steps.at(-1) as StepEvent).step

const x = (step: number) => frame.left + (step / last) * (frame.right - frame.left)
const y = (loss: number) => {
  const share = (Math.log10(loss) - decades[0]) / (decades[1] - decades[0])
  return frame.bottom - share * (frame.bottom - frame.top)
}

/** The means of a curve, each at the middle of its steps. */
function means(of: (event: StepEvent) => number | null): [step: number, loss: number][] {
  const length = Math.max(1, Math.round(last / 150))
  const groups = Array.from({ length: Math.ceil(last / length) }, () => [] as number[])
  for (const event of steps) {
    const loss = of(event)
    if (loss !== null && loss > 0) groups[Math.floor((event.step - 1) / length)]?.push(loss)
  }
  return groups.flatMap((losses, group) => {
    const mean = losses.reduce((sum, loss) => sum + loss, 0) / losses.length
    return losses.length > 0 ? [[(group + 0.5) * length, mean] as [number, number]] : []
  })
}

const text = (at: [number, number], words: string, more = '') =>
  `<text x="${at[0]}" y="${at[1]}" font-family="sans-serif" font-size="13" ${more}>${words}</text>`
const line = (from: [number, number], to: [number, number], colour: string) =>
  `<path d="M${from} L${to}" stroke="${colour}" fill="none"/>`

const parts: string[] = [`<rect width="${width}" height="${height}" fill="white"/>`]
for (let exponent = decades[0]; exponent <= decades[1]; exponent++) {
  const at = y(10 ** exponent)
  parts.push(line([frame.left, at], [frame.right, at], '#ddd'))
  parts.push(text([frame.left - 8, at + 4], String(Number(`1e${exponent}`)), 'text-anchor="end"'))
}
for (let i = 0; i <= 4; i++) {
  const step = Math.round((last * i) / 4)
  parts.push(line([x(step), frame.top], [x(step), frame.bottom], '#eee'))
  parts.push(text([x(step), frame.bottom + 18], String(step), 'text-anchor="middle"'))
}
const middle: [number, number] = [(frame.left + frame.right) / 2, frame.bottom + 38]
parts.push(text(middle, 'step (loss: mean squared error of the noise)', 'text-anchor="middle"'))
for (const [i, [name, colour, of]] of curves.entries()) {
  const points = means(of).map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`)
  parts.push(`<polyline points="${points.join(' ')}" stroke="${colour}" fill="none"/>`)
  const at = frame.top + 12 + 20 * i
  parts.push(line([frame.right + 14, at], [frame.right + 40, at], colour))
  parts.push(text([frame.right + 46, at + 4], name))
}
const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">${parts.join('')}</svg>`
await sharp(Buffer.from(svg)).png({ palette: true }).toFile(out)
