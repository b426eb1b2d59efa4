// Who may ask: tokens, and which names a server on this machine answers to.

import { createHash, timingSafeEqual } from 'node:crypto'
import { isIP } from 'node:net'
import type { FastifyInstance, FastifyRequest, onRequestHookHandler } from 'fastify'
import { DiTError } from '../errors.js'
import { HttpError } from './errors.js'

/** Tokens that are accepted; only their hashes are kept. @internal */
export class Tokens {
  readonly #hashes: readonly Buffer[]

  constructor(tokens: readonly string[]) {
    this.#hashes = tokens.map(sha256)
  }

  get asked(): boolean {
    return this.#hashes.length > 0
  }

  /**
   * Who a request comes from, by its token: '' where none is asked. Throws 401. Hashes have one length,
   * so that comparing takes the same time whatever was sent.
   */
  ownerOf(request: FastifyRequest): string {
    if (!this.asked) return ''
    const [, token = ''] = /^Bearer +([^\s]+)\s*$/i.exec(request.headers.authorization ?? '') ?? []
    const given = sha256(token)
    let found = -1
    for (const [i, hash] of this.#hashes.entries()) if (timingSafeEqual(hash, given)) found = i
    if (token !== '' && found >= 0) return `token ${found}`
    throw new HttpError(401, 'invalid_token', 'Expected Authorization: Bearer and the right token')
  }
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}

/** Whether only this machine reaches an address. @internal */
export function isLoopback(host: string): boolean {
  const name = host.replace(/^\[|\]$/g, '').toLowerCase()
  if (name === 'localhost' || name.endsWith('.localhost')) return true
  return isIP(name) === 4 ? name.startsWith('127.') : name === '::1'
}

/**
 * Answers requests for this machine only. A page from elsewhere whose name was made to mean 127.0.0.1 (DNS
 * rebinding) is refused: without a token it could use the server through the browser of who runs it.
 *
 * @internal
 */
export function onlyLoopbackNames(app: FastifyInstance): void {
  app.addHook('onRequest', async (request) => {
    // The header itself, too: with trustProxy, a page may put another beside it.
    const { host = '' } = request.raw.headers
    const names = [host.replace(/:\d*$/, ''), request.hostname]
    if (names.every((name) => name === '' || isLoopback(name))) return
    throw new HttpError(421, 'wrong_host', 'This server answers requests to localhost only')
  })
}

/**
 * A hook that limits how often one caller may ask, on all routes that have it together. Without the
 * package it says which line to run.
 *
 * @internal
 */
export async function rateLimiter(
  app: FastifyInstance,
  { requests, seconds }: { requests: number; seconds: number },
  ownerOf: (request: FastifyRequest) => string,
): Promise<onRequestHookHandler> {
  const { default: rateLimit } = await import('@fastify/rate-limit').catch((cause: unknown) => {
    const message = 'The option rateLimit needs a package: npm install @fastify/rate-limit'
    throw new DiTError('ERR_DIT_OPTION', message, { cause })
  })
  await app.register(rateLimit, { global: false, cache: 10_000 })
  return app.rateLimit({
    max: requests,
    timeWindow: seconds * 1000,
    keyGenerator: (request) => ownerOf(request) || request.ip,
    errorResponseBuilder: (_, { ttl }) => {
      const message = `Expected at most ${requests} requests in ${seconds} seconds`
      return new HttpError(429, 'rate_limit_exceeded', message, { retryAfter: ttl / 1000 })
    },
  })
}
