// A Hugging Face hub on loopback: the few endpoints that loading a model asks, answering as the real
// one does (commit of a revision, paged listing with hashes, range requests, redirects to a store).

import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'

export const commit = '0123456789abcdef0123456789abcdef01234567'

export interface FakeHub {
  readonly url: string
  /** `METHOD path` of every request so far. */
  readonly requests: string[]
  /** Files by repository and path. */
  readonly repositories: Map<string, Map<string, Buffer>>
  /** Needed to read anything, when set. */
  token: string | undefined
  /** Sees every request first; returns true when it has dealt with it. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined
  close(): Promise<void>
}

/** The files of a folder, by their names relative to it. */
export function filesOf(folder: string): Map<string, Buffer> {
  const names = readdirSync(folder, { recursive: true }) as string[]
  const files = names.filter((name) => statSync(path.join(folder, name)).isFile())
  return new Map(files.map((name) => [name, readFileSync(path.join(folder, name))]))
}

/** Files above this size are large ones, of which the repository has the SHA-256 (Git LFS). */
const largeFile = 10_000

function hash(bytes: Buffer): { oid: string; lfs?: { oid: string; size: number } } {
  const oid = createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex')
  if (bytes.length < largeFile) return { oid }
  const sha256 = createHash('sha256').update(bytes).digest('hex')
  return { oid: '1'.repeat(40), lfs: { oid: sha256, size: bytes.length } }
}

function list(files: Map<string, Buffer>, folder: string): object[] {
  const entries = new Map<string, object>()
  for (const [name, bytes] of files) {
    const start = folder === '' ? '' : `${folder}/`
    if (!name.startsWith(start)) continue
    const [first = '', ...rest] = name.slice(start.length).split('/')
    const entry = start + first
    if (rest.length === 0) {
      entries.set(entry, { type: 'file', path: entry, size: bytes.length, ...hash(bytes) })
    } else {
      entries.set(entry, { type: 'directory', path: entry, size: 0, oid: '2'.repeat(40) })
    }
  }
  return [...entries.values()]
}

export async function startHub(): Promise<FakeHub> {
  const repositories: FakeHub['repositories'] = new Map()
  const store = new Map<string, Buffer>()
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? '', hub.url)
    hub.requests.push(`${request.method} ${url.pathname}`)
    const json = (status: number, value: unknown, headers: Record<string, string> = {}) =>
      response
        .writeHead(status, { 'Content-Type': 'application/json; charset=utf-8', ...headers })
        .end(JSON.stringify(value))
    const send = (bytes: Buffer, headers: Record<string, string>) => {
      const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
      const [begin, end] = range ? [Number(range[1]), Number(range[2]) + 1] : [0, bytes.length]
      response.writeHead(range ? 206 : 200, {
        ...headers,
        'Content-Type': 'application/octet-stream',
        'Content-Length': end - begin,
        ...(range ? { 'Content-Range': `bytes ${begin}-${end - 1}/${bytes.length}` } : {}),
      })
      response.end(bytes.subarray(begin, end))
    }

    if (hub.intercept?.(request, response)) return
    const stored = /^\/store\/(\w+)$/.exec(url.pathname)?.[1]
    if (stored !== undefined)
      return send(store.get(stored) ?? Buffer.alloc(0), { ETag: `"${stored}"` })
    if (hub.token !== undefined && request.headers.authorization !== `Bearer ${hub.token}`) {
      return json(401, { error: 'Invalid username or password.' })
    }
    const api = /^\/api\/models\/([^/]+\/[^/]+)\/(revision|tree)\/([^/]+)\/?(.*)$/.exec(
      url.pathname,
    )
    const file = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname)
    const files = repositories.get(api?.[1] ?? file?.[1] ?? '')
    const revision = decodeURIComponent(api?.[3] ?? file?.[2] ?? '')
    if (files === undefined) return json(404, { error: 'Repository not found' })
    if (!['main', 'v1/2', commit].includes(revision))
      return json(404, { error: `Invalid rev id: ${revision}` })
    if (api?.[2] === 'revision') {
      return json(200, { _id: '1', id: api[1], private: false, sha: commit, lastModified: 0 })
    }
    if (api?.[2] === 'tree') {
      // Pages of three entries, as the real hub has of a thousand.
      const entries = list(files, api[4] ?? '')
      const cursor = Number(url.searchParams.get('cursor') ?? 0)
      const next = `<${hub.url}${url.pathname}?cursor=${cursor + 3}>; rel="next"`
      const more = cursor + 3 < entries.length ? { Link: next } : {}
      return json(200, entries.slice(cursor, cursor + 3), more as Record<string, string>)
    }
    const bytes = files.get(file?.[3] ?? '')
    if (bytes === undefined)
      return json(404, { error: 'Entry not found' }, { 'X-Error-Code': 'EntryNotFound' })
    const { oid, lfs } = hash(bytes)
    if (lfs === undefined) return send(bytes, { ETag: `"${oid}"`, 'X-Repo-Commit': commit })
    store.set(lfs.oid, bytes)
    return response
      .writeHead(302, {
        Location: `${hub.url}/store/${lfs.oid}`,
        'X-Linked-ETag': `"${lfs.oid}"`,
        'X-Linked-Size': String(lfs.size),
        'X-Repo-Commit': commit,
      })
      .end()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const hub: FakeHub = {
    url: `http://127.0.0.1:${port}`,
    requests: [],
    repositories,
    token: undefined,
    intercept: undefined,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
  return hub
}
