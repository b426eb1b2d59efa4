// Results as Markdown, which a terminal shows well enough.

import { readFileSync } from 'node:fs'
import os from 'node:os'
import { duration, scaled } from '../lib/cli/units.js'
import type {
  measureDecoder,
  measureForward,
  measureLoad,
  measureSample,
  Times,
} from './measure.js'

export interface Results {
  date: string
  commit: string
  command: string
  processor: string
  cores: number
  /** Processes that wanted to run in the minute before, on average: 0 on a quiet machine. */
  loadAverage: number
  node: string
  /** What else is to be known of the circumstances. */
  note?: string
  /** GFLOP/s by precision. */
  peak?: Record<string, number>
  forward?: Awaited<ReturnType<typeof measureForward>>
  decoder?: Awaited<ReturnType<typeof measureDecoder>>
  load?: Awaited<ReturnType<typeof measureLoad>>
  sample?: Awaited<ReturnType<typeof measureSample>>
}

/** What issue and design ask for: our time as a share of onnxruntime's. */
const bars: Record<string, number> = { bf16: 0.55, fp32: 1 }
const peerName = 'onnxruntime fp32'

export function report(results: Results): string {
  const { peak, forward, decoder, load, sample } = results
  return [
    head(results),
    ...(peak ? [peakTable(peak)] : []),
    ...(forward ? [forwardTable(forward, peak)] : []),
    ...(decoder ? [decoderTable(decoder)] : []),
    ...(load ? [loadTable(load)] : []),
    ...(sample ? [sampleTable(sample)] : []),
  ].join('\n\n')
}

function head({ date, commit, command, processor, cores, loadAverage, node, note }: Results) {
  return (
    `${date}, commit ${commit}, ${processor} with ${cores} cores, Node ${node}, load average ` +
    `${loadAverage.toFixed(2)} at the start, \`${command}\`.${note ? ` ${note}` : ''}`
  )
}

/** The name of the processor. */
export function processor(): string {
  const name = /^model name\s*: (.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]
  return name ?? os.arch()
}

export function table(columns: string[], rows: string[][]): string {
  const widths = columns.map((name, i) =>
    Math.max(name.length, ...rows.map((row) => row[i]?.length ?? 0)),
  )
  const line = (cells: string[]) =>
    `| ${cells.map((cell, i) => cell.padEnd(widths[i] as number)).join(' | ')} |`
  const rule = widths.map((width) => '-'.repeat(width))
  return [columns, rule, ...rows].map(line).join('\n')
}

const percent = (share: number) => `${(100 * share).toFixed(0)} %`

/** GFLOP/s, and the share of the precision's peak where that was measured. */
function rate(flops: number, seconds: number, precision: string, peak?: Record<string, number>) {
  const gflops = flops / seconds / 1e9
  const most = peak?.[precision]
  return [gflops.toFixed(0), most === undefined ? '' : percent(gflops / most)]
}

function peakTable(peak: Record<string, number>): string {
  const rows = Object.entries(peak).map(([precision, gflops]) => [precision, gflops.toFixed(0)])
  return `Peak: multiply-adds on registers alone, best of 15\n\n${table(['precision', 'GFLOP/s'], rows)}`
}

function forwardTable(
  { flops, times, errors, profile }: NonNullable<Results['forward']>,
  peak?: Record<string, number>,
): string {
  const peer = times[peerName] as Times
  const rows = Object.entries(times).map(([name, { median, min, all }]) => {
    const isPeer = name === peerName
    const ratio = (ours: number, theirs: number) => (isPeer ? '' : (ours / theirs).toFixed(3))
    return [
      isPeer ? name : `ours ${name}`,
      `${median.toFixed(3)} s`,
      `${min.toFixed(3)} s`,
      ...rate(flops, min, isPeer ? 'fp32' : name, peak),
      ratio(median, peer.median),
      ratio(min, peer.min),
      isPeer ? '' : timesRatio(all, peer.all).toFixed(3),
      isPeer ? '' : `≤ ${bars[name]?.toFixed(2) ?? ''}`,
      (errors[name] as number).toExponential(1),
    ]
  })
  const columns = [
    'forward',
    'median',
    'minimum',
    'GFLOP/s',
    'of peak',
    'ratio of medians',
    'of minima',
    'median of ratios',
    'bar',
    'relative error',
  ]
  const shares = Object.entries(profile)
    .sort(([, a], [, b]) => b.share - a.share)
    .slice(0, 5)
    .map(([name, { calls, share }]) => `${name} ${percent(share)} in ${calls} calls`)
  return (
    `One forward pass of DiT-XL/2, batch 2, 32×32 latents (${scaled(flops, 'FLOP')}), ` +
    `${peer.all.length} alternating rounds; GFLOP/s by the minimum; ratios are ours to ` +
    `onnxruntime's; errors are against the reference implementation, same weights and inputs\n\n` +
    `${table(columns, rows)}\n\nWhere onnxruntime's time goes: ${shares.join(', ')}`
  )
}

/** The median of each round's ratio: what slowed the machine down for a while slowed both down. */
function timesRatio(ours: number[], theirs: number[]): number {
  const ratios = ours.map((seconds, i) => seconds / (theirs[i] as number)).sort((a, b) => a - b)
  return ratios[ratios.length >> 1] as number
}

function decoderTable({ flops, times }: NonNullable<Results['decoder']>): string {
  const rows = Object.entries(times).map(([precision, { median, min }]) => [
    `ours ${precision}`,
    `${median.toFixed(3)} s`,
    `${min.toFixed(3)} s`,
    (flops / min / 1e9).toFixed(0),
  ])
  // No share of the peak: the count is that of the plain algorithm, and ours needs fewer operations.
  return (
    `Stable Diffusion's VAE decoder, one image of 256×256 pixels (${scaled(flops, 'FLOP')} as it is ` +
    `usually counted; ours needs fewer: an upsampling is folded into the convolution after it)\n\n` +
    table(['decode', 'median', 'minimum', 'GFLOP/s'], rows)
  )
}

function loadTable(load: NonNullable<Results['load']>): string {
  const rows = Object.entries(load).map(([precision, { times, weightBytes, ...bytes }]) => [
    precision,
    `${times.median.toFixed(2)} s`,
    `${times.min.toFixed(2)} s`,
    scaled(weightBytes, 'B'),
    scaled(bytes.peak, 'B'),
    percent(bytes.peak / weightBytes),
    scaled(bytes.after, 'B'),
    scaled(bytes.resident, 'B'),
  ])
  const columns = [
    'load',
    'median',
    'minimum',
    'weights',
    'peak anonymous memory',
    'of weights',
    'anonymous after',
    'peak resident',
  ]
  return (
    'Loading DiT-XL/2 from a safetensors file of fp32 weights (2.70 GB, in the page cache); memory ' +
    `beyond what the process had before; resident memory counts the mapped file\n\n${table(columns, rows)}`
  )
}

function sampleTable({ command, runs }: NonNullable<Results['sample']>): string {
  const names = ['load', 'sample', 'decode', 'write', 'total', 'process'] as const
  const rows = Object.entries(runs).map(([precision, stages]) => [
    precision,
    ...names.map((name) => duration(stages[name])),
  ])
  return `Whole way to a PNG of 256×256 pixels: \`${command}\`\n\n${table(['precision', ...names], rows)}`
}
