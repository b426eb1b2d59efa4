// npm run bench -- [--quick] [--only=peak,forward,decoder,load,sample] [--json] [--write [--note=…]]
//
// Times this project beside onnxruntime-node, on all cores. Prints tables, or with --json one JSON
// object; --write also replaces bench/RESULTS.md, with a note on the circumstances. --quick takes fewer rounds. Wants a quiet machine;
// alternating rounds and minima help on others. The first run makes 3.1 GB of files in bench/.cache.

import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { packageRoot as root } from '../lib/root.cjs'
import * as measure from './measure.js'
import { processor, type Results, report } from './report.js'

const preface = `# Benchmark results

\`npm run bench\` measures these; \`npm run bench -- --write\` writes this page down to “On a GPU”.

The peer is onnxruntime-node 1.30, fp32 (it has no bf16 on x86), on a model written for it by
\`peers/dit_onnx.ts\`: the same weights, read from the same file, fused attention and GELU, packed weights.
\`peers/\` says which other ways were tried. Both use all cores. Their processes take turns, run by run, with
timesteps that change each time, and both results are compared with the reference implementation's.
`

const gpuHeading = '## On a GPU'

const benchmarks = {
  peak: async () => measure.measurePeak(),
  forward: (quick) => measure.measureForward(quick ? 3 : 11),
  decoder: (quick) => measure.measureDecoder(quick ? 3 : 9),
  load: (quick) => measure.measureLoad(quick ? 1 : 3),
  sample: (quick) => measure.measureSample(quick ? 1 : 3),
} satisfies Record<string, (quick: boolean) => Promise<unknown>>
type Name = keyof typeof benchmarks

function git(...args: string[]): string {
  return spawnSync('git', args, { cwd: root, encoding: 'utf8' }).stdout.trim()
}

function commit(): string {
  const changed = git('status', '--porcelain', '--untracked-files=no') !== ''
  return `${git('rev-parse', '--short', 'HEAD')}${changed ? ' with changes' : ''}`
}

async function main(): Promise<void> {
  const args = process.argv.slice(2)
  const { values } = parseArgs({
    args,
    options: {
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      write: { type: 'boolean', default: false },
      note: { type: 'string' },
      only: { type: 'string', default: Object.keys(benchmarks).join(',') },
    },
  })
  const chosen = values.only.split(',')
  const unknown = chosen.filter((name) => !Object.hasOwn(benchmarks, name))
  if (unknown.length > 0) {
    throw new Error(`--only: expected some of ${Object.keys(benchmarks)}, got ${unknown}`)
  }
  const flags = args.filter((arg) => !arg.startsWith('--note='))
  const results: Results = {
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    command: ['npm run bench', ...(flags.length > 0 ? ['--', ...flags] : [])].join(' '),
    processor: processor(),
    cores: measure.threads,
    loadAverage: os.loadavg()[0] as number,
    node: process.versions.node,
    ...(values.note && { note: values.note }),
  }
  for (const name of Object.keys(benchmarks) as Name[]) {
    if (!chosen.includes(name)) continue
    console.error(`bench: ${name}`)
    Object.assign(results, { [name]: await benchmarks[name](values.quick) })
  }
  console.log(values.json ? JSON.stringify(results) : report(results))
  if (values.write) {
    const file = path.join(root, 'bench/RESULTS.md')
    // What was measured elsewhere stays: by scripts/gpu-check, and of training.
    const elsewhere = readFileSync(file, 'utf8').split(`\n${gpuHeading}\n`)[1] ?? ''
    writeFileSync(file, `${preface}\n${report(results)}\n\n${gpuHeading}\n${elsewhere}`)
  }
}

main().catch((error: Error) => {
  console.error(`bench: ${error.stack}`)
  process.exitCode = 1
})
