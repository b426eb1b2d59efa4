// The page at /: a few files, read once and served from memory.

import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { modulesFolder } from '../root.cjs'

const types: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
  '.webmanifest': 'application/manifest+json',
  '.woff2': 'font/woff2',
}

/** Nothing from elsewhere, nothing inline, nowhere framed. */
const policy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data: blob:",
  "font-src 'self'",
  "connect-src 'self'",
  "manifest-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ')

interface StaticFile {
  body: Buffer
  type: string
  etag: string
}

/** index.html at /, every other file beside it at its own name. @internal */
export function addPlayground(app: FastifyInstance): void {
  const folder = path.join(modulesFolder, 'server', 'playground')
  for (const name of readdirSync(folder)) {
    const type = types[path.extname(name)]
    if (type === undefined) continue
    const body = readFileSync(path.join(folder, name))
    const etag = `"${createHash('sha256').update(body).digest('base64url').slice(0, 22)}"`
    const file = { body, type, etag }
    const isPage = name === 'index.html'
    app.get(
      isPage ? '/' : `/${name}`,
      { logLevel: 'warn', schema: { hide: true } },
      async (request, reply) => {
        // Without the slash, names beside the page would be looked for one level higher.
        const [asked = '', query] = request.url.split('?')
        if (isPage && !asked.endsWith('/')) {
          const last = asked.slice(asked.lastIndexOf('/') + 1)
          return reply.redirect(`./${last}/${query === undefined ? '' : `?${query}`}`, 308)
        }
        return send(file, request, reply)
      },
    )
  }
}

function send({ body, type, etag }: StaticFile, request: FastifyRequest, reply: FastifyReply) {
  reply.headers({
    'content-type': type,
    etag,
    'cache-control': 'no-cache',
    'content-security-policy': policy,
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    'referrer-policy': 'no-referrer',
    'x-content-type-options': 'nosniff',
  })
  const known = request.headers['if-none-match']
    ?.split(',')
    .map((tag) => tag.trim().replace(/^W\//, ''))
  if (known?.some((tag) => tag === etag || tag === '*')) return reply.code(304).send()
  return reply.send(body)
}
