// Servers and what is asked of them.

import Fastify, { type FastifyInstance } from 'fastify'
import { DiT } from '../../lib/index.js'
import { type DitServerOptions, ditServer } from '../../lib/server/index.js'

/** A model of 16×16 pixels whose steps take a millisecond or so. */
export function tinyModel(maxBatch = 4, maxQueue?: number): Promise<DiT> {
  const size = { depth: 2, hidden: 64, heads: 2, patchSize: 4, latentSize: 16, channels: 3 }
  const id2label = {
    0: 'tench, Tinca tinca',
    1: 'tabby, tabby cat',
    2: 'tiger cat',
    3: 'crane',
    4: 'crane',
  }
  return DiT.create(
    { ...size, numClasses: 6 },
    {
      seed: 1,
      device: 'cpu',
      precision: 'fp32',
      id2label,
      maxBatch,
      ...(maxQueue !== undefined && { maxQueue }),
    },
  )
}

/** An application that serves it, not listening yet. */
export async function appWith(
  model: DitServerOptions['model'],
  options: Omit<DitServerOptions, 'model'> & { prefix?: string } = {},
): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(ditServer, { model, ...options })
  await app.ready()
  return app
}

/** Whatever it is. */
// biome-ignore lint/suspicious/noExplicitAny: JSON
export type Json = any

export interface Reply {
  status: number
  headers: Record<string, string | string[] | number | undefined>
  body: string
  bytes: Buffer
  json(): Json
}

/** POSTs JSON, without a network. */
export async function post(
  app: FastifyInstance,
  url: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Reply> {
  const answer = await app.inject({ method: 'POST', url, payload: body as object, headers })
  return replyOf(answer)
}

export async function get(
  app: FastifyInstance,
  url: string,
  headers: Record<string, string> = {},
): Promise<Reply> {
  return replyOf(await app.inject({ method: 'GET', url, headers }))
}

function replyOf(answer: Awaited<ReturnType<FastifyInstance['inject']>>): Reply {
  const { statusCode: status, headers, body, rawPayload: bytes } = answer
  return { status, headers, body, bytes, json: () => JSON.parse(body) }
}

/** Events of a stream as they come, each `[name, data]`. */
export async function* eventsOf(answer: Response): AsyncGenerator<[string, Json]> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const chunk of answer.body as AsyncIterable<Uint8Array>) {
    text += decoder.decode(chunk, { stream: true })
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const lines = text.slice(0, end).split('\n')
      text = text.slice(end + 2)
      const name = lines.find((line) => line.startsWith('event: '))?.slice(7)
      const data = lines.find((line) => line.startsWith('data: '))?.slice(6)
      if (name !== undefined && data !== undefined) yield [name, JSON.parse(data)]
    }
  }
}
