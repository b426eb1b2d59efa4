// npm run bench:load -- [--models=demo,DiT-S/2] [--seconds=10] [--mixed=90] [--threads=0] [--write] [--note=…]
//
// The server under load from another process over loopback, on the CPU: continuous batching beside
// the same server that makes one request's image at a time, first come first served. Prints tables;
// --write also puts them into bench/RESULTS.md. Wants a machine that does nothing else.

import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { packageRoot as root } from '../../lib/root.cjs'
import { processor, table } from '../report.js'
import {
  joined,
  type Latency,
  long,
  type Mixed,
  mixedLoad,
  percentile,
  Server,
  short,
} from './client.js'

const clients = [1, 4, 16, 64]
/** Of the mixed load, in which the two servers take turns. */
const turns = 3
const heading = '## Under load'

const { values: given } = parseArgs({
  options: {
    models: { type: 'string', default: 'demo,DiT-S/2' },
    seconds: { type: 'string', default: '10' },
    mixed: { type: 'string', default: '90' },
    threads: { type: 'string', default: '0' },
    write: { type: 'boolean', default: false },
    note: { type: 'string' },
  },
})
const seconds = Number(given.seconds)
const threads = Number(given.threads)
const cores = threads || os.availableParallelism()
const ms = (value: number) => `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`

interface Closed {
  batched: Latency & { bad: number }
  fifo: Latency & { bad: number }
}

/** Both ways in turns, so that what else the machine does slows both down. */
async function closedLoops(batched: Server, fifo: Server): Promise<Closed[]> {
  const results: Closed[] = []
  const wish = { labels: 1, steps: 10 }
  for (const n of clients) {
    results.push({
      batched: await batched.closed(n, seconds, wish),
      fifo: await fifo.closed(n, seconds, wish),
    })
  }
  return results
}

async function loneRuns(server: Server) {
  const shorts: Buffer[] = []
  for (let i = 0; i < 16; i++) shorts.push((await server.ask(short(i))).body)
  return { long: (await server.ask(long)).body, short: shorts }
}

/** The queue's limit: below it nothing fails, above it requests are refused and told when to come back. */
async function overload(model: string): Promise<string> {
  const server = await Server.start({ model, fifo: false, maxQueue: 12, threads })
  const below = await server.closed(16, Math.min(seconds, 5), { labels: 1, steps: 10 })
  const answers = await Promise.all(Array.from({ length: 64 }, (_, i) => server.ask(short(i))))
  const refused = answers.filter(({ status }) => status === 429 || status === 503)
  const told = refused.filter(({ retryAfter }) => Number(retryAfter) > 0)
  const made = answers.filter(({ status }) => status === 200)
  await server.stop()
  return (
    `With \`maxQueue: 12\`: of 16 clients' requests ${below.bad} failed; of 64 requests at once ` +
    `${made.length} were answered with an image, ${refused.length} with 429 or 503 (${told.length} of them with ` +
    `\`Retry-After\`), ${64 - made.length - refused.length} otherwise.`
  )
}

async function measure(model: string): Promise<string> {
  const batched = await Server.start({ model, fifo: false, threads })
  const fifo = await Server.start({ model, fifo: true, threads })
  await batched.closed(4, 2, { labels: 1, steps: 10 })
  await fifo.closed(4, 2, { labels: 1, steps: 10 })
  const closed = await closedLoops(batched, fifo)

  const perSecond = (closed[1] as Closed).batched.perSecond / 2
  if (perSecond === 0) throw new Error('no image was made: --seconds is too short for this machine')
  const expected = await loneRuns(batched)
  const alone: number[] = []
  const idle = await batched.watch(() => sleep(3000))
  const mixed: { batched: Mixed[]; fifo: Mixed[]; p99: number[] } = {
    batched: [],
    fifo: [],
    p99: [],
  }
  for (let turn = 0; turn < turns; turn++) {
    const run = (server: Server) =>
      mixedLoad(server, perSecond, Number(given.mixed) / turns, expected, turn)
    alone.push((await batched.ask(long)).milliseconds)
    const { result, told } = await batched.watch(() => run(batched))
    mixed.batched.push(result)
    mixed.p99.push(told.p99)
    mixed.fifo.push(await run(fifo))
  }
  const busy = Math.max(...mixed.p99)
  await batched.stop()
  await fifo.stop()

  const rows = closed.map((point, i) => [
    String(clients[i]),
    ...[point.batched, point.fifo].flatMap((one) => [
      `${one.perSecond.toFixed(1)}/s`,
      ms(one.p50),
      ms(one.p99),
    ]),
    String(point.batched.bad + point.fifo.bad),
  ])
  const columns = ['clients', 'batched', 'p50', 'p99', 'one at a time', 'p50', 'p99', 'failed']
  return [
    `### ${model}, images of 10 steps, guided`,
    table(columns, rows),
    mixedTable(joined(mixed.batched), joined(mixed.fifo), perSecond, percentile(alone, 0.5)),
    `Event loop of the server, p99 of its delay (resolution 1 ms): idle ${idle.told.p99.toFixed(2)} ms, under ` +
      `the mixed load ${busy.toFixed(2)} ms, ${(busy - idle.told.p99).toFixed(2)} more (bar: < 15).`,
    await overload(model),
  ].join('\n\n')
}

function mixedTable(batched: Mixed, fifo: Mixed, perSecond: number, alone: number): string {
  const mean = (times: readonly number[]) => times.reduce((sum, one) => sum + one, 0) / times.length
  const row = (name: string, { short, long, wrong }: Mixed) => [
    name,
    String(short.length),
    ms(percentile(short, 0.5)),
    ms(percentile(short, 0.99)),
    ms(mean(long)),
    String(wrong),
  ]
  // What the short ones leave: they took so many of the rounds' seconds, at the machine's full rate.
  const left = 1 - batched.short.length / (2 * perSecond) / batched.seconds
  const slower = mean(batched.long) / alone
  const ratio = percentile(batched.short, 0.99) / percentile(fifo.short, 0.99)
  return (
    `One image of 250 steps always in the making, others of 10 steps at random times, ` +
    `${perSecond.toFixed(1)} a second, half of what the machine makes\n\n` +
    table(
      ['', 'short ones', 'p50', 'p99', 'long one', 'not the image of a lone run'],
      [row('batched', batched), row('one at a time', fifo)],
    ) +
    `\n\nRatio of the p99 of the short ones: ${ratio.toFixed(2)} (bar: ≤ 0.30). The long one takes ` +
    `${ms(alone)} alone, so it was slowed ${slower.toFixed(2)} times; its share of the machine was ${left.toFixed(2)}, ` +
    `which is ${(1 / left).toFixed(2)} times.`
  )
}

function git(...args: string[]): string {
  return spawnSync('git', args, { cwd: root, encoding: 'utf8' }).stdout.trim()
}

const flags = process.argv.slice(2).filter((flag) => !/^--(write|note)/.test(flag))
const command = ['npm run bench:load', ...(flags.length > 0 ? ['--', ...flags] : [])].join(' ')
const head =
  `\`${command}\`: dit-native/server in one process, autocannon and a client of random arrivals in another, ` +
  `over loopback. “One at a time” is the same server that lets one request's image be made at a time, first come ` +
  `first served.\n\nCommit ${git('rev-parse', '--short', 'HEAD')}, ${new Date().toISOString().slice(0, 10)}, ${processor()}, ` +
  `${cores} threads, load average ${os.loadavg()[0]?.toFixed(2)} at the start.` +
  (given.note ? ` ${given.note}` : '')
const parts = [heading, head]
for (const model of given.models.split(',')) parts.push(await measure(model))
const text = parts.join('\n\n')
console.log(text)

if (given.write) {
  const file = path.join(root, 'bench/RESULTS.md')
  const page = readFileSync(file, 'utf8')
  const at = page.indexOf(heading)
  const next = at < 0 ? -1 : page.indexOf('\n## ', at + 1)
  const before = at < 0 ? `${page.trimEnd()}\n\n` : page.slice(0, at)
  writeFileSync(file, `${before}${text}\n${next < 0 ? '' : page.slice(next)}`)
}
