// The other process: starts servers, and asks them for images.

import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import autocannon from 'autocannon'
import type { ServerOptions, Told } from './server.js'

/** What is asked for. */
export interface Wish {
  labels: number
  steps: number
  seed?: number
}

/** Milliseconds, and images a second. */
export interface Latency {
  p50: number
  p99: number
  perSecond: number
}

export interface Answer {
  status: number
  retryAfter: string | undefined
  body: Buffer
  milliseconds: number
}

const headers = { 'content-type': 'application/json', accept: 'image/png' }

export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] as number
}

/** A server in a process of its own. */
export class Server {
  readonly #agent = new http.Agent({ keepAlive: true })

  private constructor(
    readonly port: number,
    readonly child: ChildProcess,
  ) {}

  static async start(options: ServerOptions): Promise<Server> {
    const child = fork(new URL('./server.ts', import.meta.url), { execArgv: process.execArgv })
    child.send(options)
    const [message] = await once(child, 'message')
    return new Server(message.port, child)
  }

  async stop(): Promise<void> {
    this.#agent.destroy()
    this.child.kill()
    await once(this.child, 'exit')
  }

  /** What `work` does to the server. */
  async watch<T>(work: () => Promise<T>): Promise<{ result: T; told: Told }> {
    this.child.send('watch')
    const result = await work()
    this.child.send('tell')
    const [told] = await once(this.child, 'message')
    return { result, told }
  }

  /** Clients that ask again as soon as they have their image. */
  async closed(clients: number, seconds: number, wish: Wish): Promise<Latency & { bad: number }> {
    const { latency, requests, non2xx, errors, duration } = await autocannon({
      url: `http://127.0.0.1:${this.port}/v1/images`,
      method: 'POST',
      headers,
      body: JSON.stringify(wish),
      connections: clients,
      duration: seconds,
      timeout: 300,
    })
    const perSecond = (requests.total - non2xx) / duration
    return { p50: latency.p50, p99: latency.p99, perSecond, bad: non2xx + errors }
  }

  ask(wish: Wish): Promise<Answer> {
    const body = JSON.stringify(wish)
    const begin = performance.now()
    return new Promise((resolve, reject) => {
      const request = http.request(
        {
          port: this.port,
          host: '127.0.0.1',
          path: '/v1/images',
          method: 'POST',
          agent: this.#agent,
          headers: { ...headers, 'content-length': Buffer.byteLength(body) },
        },
        (response) => {
          const chunks: Buffer[] = []
          response.on('data', (chunk) => chunks.push(chunk))
          response.on('error', reject)
          response.on('end', () =>
            resolve({
              status: response.statusCode as number,
              retryAfter: response.headers['retry-after'],
              body: Buffer.concat(chunks),
              milliseconds: performance.now() - begin,
            }),
          )
        },
      )
      request.on('error', reject)
      request.end(body)
    })
  }
}

/** A small source of random numbers from 0 to 1, the same in every run. */
function randomNumbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return (state + 0.5) / 2 ** 32
  }
}

export interface Mixed {
  short: number[]
  long: number[]
  seconds: number
  /** Answers that are not the image of a lone run. */
  wrong: number
}

export function joined(parts: readonly Mixed[]): Mixed {
  const sum = (of: (part: Mixed) => number) => parts.reduce((all, part) => all + of(part), 0)
  return {
    short: parts.flatMap((part) => part.short),
    long: parts.flatMap((part) => part.long),
    seconds: sum(({ seconds }) => seconds),
    wrong: sum(({ wrong }) => wrong),
  }
}

export const long: Wish = { labels: 1, steps: 250, seed: 999 }
export const short = (i: number): Wish => ({ labels: 1, steps: 10, seed: i % 16 })

/**
 * One image of 250 steps always in the making, and images of 10 steps asked for at random times, so
 * many a second on average (a Poisson process, the same for the same seed).
 */
export async function mixedLoad(
  server: Server,
  perSecond: number,
  seconds: number,
  expected: { long: Buffer; short: Buffer[] },
  seed: number,
): Promise<Mixed> {
  const random = randomNumbers(seed)
  const mixed: Mixed = { short: [], long: [], seconds: 0, wrong: 0 }
  const begin = performance.now()
  let over = false
  const check = ({ status, body }: Answer, want: Buffer) => {
    if (status !== 200 || !body.equals(want)) mixed.wrong++
  }
  const longs = (async () => {
    while (!over) {
      const answer = await server.ask(long)
      check(answer, expected.long)
      mixed.long.push(answer.milliseconds)
    }
  })()
  const shorts: Promise<void>[] = []
  let due = begin
  for (let i = 0; ; i++) {
    due += (-1000 * Math.log(random())) / perSecond
    if (due > begin + 1000 * seconds) break
    await sleep(Math.max(0, due - performance.now()))
    shorts.push(
      server.ask(short(i)).then((answer) => {
        check(answer, expected.short[i % 16] as Buffer)
        mixed.short.push(answer.milliseconds)
      }),
    )
  }
  await Promise.all(shorts)
  over = true
  await longs
  mixed.seconds = (performance.now() - begin) / 1000
  return mixed
}
