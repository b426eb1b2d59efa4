// Repositories of the Hugging Face hub, kept in the cache that Python's huggingface_hub uses:
//   models--org--name/blobs/<hash>                 the files
//   models--org--name/snapshots/<commit>/<file>    links to them
//   models--org--name/refs/<revision>              the commit that a branch or tag meant last time

import { createHash, randomUUID } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import { mkdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { ReadableStream } from 'node:stream/web'
import { setTimeout as delay } from 'node:timers/promises'
import {
  downloadFile,
  getHFHubCachePath,
  getRepoFolderName,
  HUB_URL,
  HubApiError,
  type ListFileEntry,
  listFiles,
  modelInfo,
} from '@huggingface/hub'
import { DiTError, fileError, invalidOption, show } from '../errors.js'
import { isError } from '../realms.js'
import { exists } from './file.js'
import { openFolder, type Place, pipelineFolders } from './place.js'
import type { ResolveOptions } from './types.js'

/** A request or download is tried this often, with a pause of 0.5 s, then 1 s between. */
const attempts = 3

const commitPattern = /^[0-9a-f]{40}$/

export interface Repository {
  /** The commit that the revision means. */
  readonly commit: string
  /** The files of the commit that the cache has, if any. */
  readonly cached: Place | undefined
  /** All files of the commit, downloaded when asked for; asks the hub for the list. */
  remote(): Promise<Place>
}

/**
 * Finds the commit of a repository's revision: asks the hub, or the cache when the hub cannot be
 * reached or HF_HUB_OFFLINE is set. A full commit hash needs no question.
 *
 * HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and HF_HOME are used as Python's huggingface_hub does.
 */
export async function openRepository(id: string, options: ResolveOptions): Promise<Repository> {
  const revision = options.revision ?? 'main'
  if (!/^[\w.-]+(\/[\w.-]+)*$/.test(revision) || revision.includes('..')) {
    throw invalidOption('revision', 'a branch, tag or commit', revision)
  }
  const hub = new Hub(id, options)
  const commit = commitPattern.test(revision) ? revision : await hub.findCommit(revision)
  const name = `${id}@${commit.slice(0, 12)}`
  const snapshot = path.join(hub.folder, 'snapshots', commit)
  const cached = (await exists(snapshot)) ? await openFolder(snapshot, name) : undefined
  return { commit, cached, remote: () => hub.list(commit, name) }
}

class Hub {
  /** The repository's folder in the cache. */
  readonly folder: string
  private readonly signal: AbortSignal | undefined
  private readonly access: { hubUrl: string; accessToken?: string; fetch: typeof fetch }

  constructor(
    private readonly id: string,
    private readonly options: ResolveOptions,
  ) {
    const token = process.env.HF_TOKEN?.trim()
    if (token && !token.startsWith('hf_')) {
      throw new DiTError(
        'ERR_DIT_OPTION',
        "HF_TOKEN is no Hugging Face token: it must start with 'hf_'",
      )
    }
    this.folder = path.join(getHFHubCachePath(), getRepoFolderName({ name: id, type: 'model' }))
    this.signal = options.signal
    this.access = {
      hubUrl: (process.env.HF_ENDPOINT || HUB_URL).replace(/\/+$/, ''),
      fetch: (url, init) => {
        const signals = [this.signal, init?.signal].filter((signal) => signal != null)
        return fetch(url, { ...init, signal: AbortSignal.any(signals) })
      },
      ...(token ? { accessToken: token } : {}),
    }
  }

  async findCommit(revision: string): Promise<string> {
    const ref = path.join(this.folder, 'refs', revision)
    // Without the hub, what the revision meant last time must do.
    const known = (await exists(ref)) ? (await readFile(ref, 'utf8')).trim() : ''
    try {
      const info = await this.request(
        `revision ${show(revision)}`,
        () => modelInfo({ ...this.access, name: this.id, revision, additionalFields: ['sha'] }),
        commitPattern.test(known) ? 1 : attempts,
      )
      const commit: unknown = info.sha
      if (typeof commit !== 'string' || !commitPattern.test(commit)) {
        throw new DiTError('ERR_DIT_FILE', `The hub answered with the commit ${show(commit)}`)
      }
      if (commit === known) return commit // the cache may be read-only
      await wrapFile(ref, async () => {
        await mkdir(path.dirname(ref), { recursive: true })
        await writeFile(ref, commit)
      })
      return commit
    } catch (cause) {
      if (cause instanceof Unreachable && commitPattern.test(known)) return known
      throw cause
    }
  }

  async list(commit: string, name: string): Promise<Place> {
    const entries = new Map<string, ListFileEntry>()
    await this.request('the list of files', async () => {
      for (const folder of ['', ...pipelineFolders]) {
        if (folder !== '' && entries.get(folder)?.type !== 'directory') continue
        const list = listFiles({
          ...this.access,
          repo: this.id,
          revision: commit,
          ...(folder === '' ? {} : { path: folder }),
        })
        for await (const entry of list) entries.set(entry.path, entry)
      }
    })
    const files = [...entries.values()].filter((entry) => {
      const known = entry.type === 'file' && typeof entry.path === 'string'
      const safe = known && /^([\w-]+\/)?[\w.-]+$/.test(entry.path) && !entry.path.includes('..')
      return safe && Number.isSafeInteger(entry.size)
    })
    const progress = { done: 0, total: 0 }
    return {
      name,
      files: new Set(files.map((file) => file.path)),
      get: async (names) => {
        const paths: string[] = []
        progress.total += names.length
        for (const file of names) {
          const entry = entries.get(file)
          if (entry === undefined) throw new DiTError('ERR_DIT_FILE', `${name} has no ${file}`)
          paths.push(await this.get(commit, entry, progress))
        }
        return paths
      },
    }
  }

  /** The local path of a file, downloaded if need be. */
  private async get(
    commit: string,
    entry: ListFileEntry,
    progress: { done: number; total: number },
  ): Promise<string> {
    const link = path.join(this.folder, 'snapshots', commit, entry.path)
    const report = (loaded: number) =>
      this.options.onProgress?.({
        phase: 'download',
        file: entry.path,
        loaded,
        total: entry.size,
        filesDone: progress.done,
        filesTotal: progress.total,
      })
    if (await exists(link)) {
      progress.done += 1
      return link
    }
    const hash = entry.lfs?.oid ?? entry.oid
    if (hash === undefined || !/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(hash)) {
      throw new DiTError('ERR_DIT_FILE', `The hub says no valid hash for ${entry.path}`)
    }
    const blob = path.join(this.folder, 'blobs', hash)
    if (!(await exists(blob))) {
      await this.request(entry.path, () => this.download(commit, entry, hash, blob, report))
    }
    await wrapFile(link, async () => {
      await mkdir(path.dirname(link), { recursive: true })
      await rm(link, { force: true })
      await symlink(path.relative(path.dirname(link), blob), link)
    })
    progress.done += 1
    report(entry.size)
    return link
  }

  /** Writes a file beside the blobs and, when it is whole, moves it there. */
  private async download(
    commit: string,
    entry: ListFileEntry,
    hash: string,
    blob: string,
    report: (loaded: number) => void,
  ): Promise<void> {
    const content = await downloadFile({
      ...this.access,
      repo: this.id,
      revision: commit,
      path: entry.path,
    })
    if (content === null) throw new DiTError('ERR_DIT_FILE', `The hub has no ${entry.path}`)
    // The hash of a large file is the SHA-256 of its bytes, that of a small one git's.
    const sum = createHash(hash.length === 64 ? 'sha256' : 'sha1')
    if (hash.length === 40) sum.update(`blob ${entry.size}\0`)
    let loaded = 0
    const count = async function* (chunks: AsyncIterable<Uint8Array>) {
      for await (const chunk of chunks) {
        sum.update(chunk)
        loaded += chunk.byteLength
        if (loaded < entry.size) report(loaded)
        yield chunk
      }
    }
    const partial = `${blob}.${randomUUID()}.incomplete`
    try {
      await mkdir(path.dirname(blob), { recursive: true })
      await pipeline(
        Readable.fromWeb(content.stream() as ReadableStream),
        count,
        createWriteStream(partial),
        this.signal === undefined ? {} : { signal: this.signal },
      )
      if (sum.digest('hex') !== hash) {
        throw new Error(
          `got ${loaded} of ${entry.size} bytes, or wrong ones: the hash does not match`,
        )
      }
      await rename(partial, blob)
    } finally {
      await rm(partial, { force: true })
    }
  }

  /** Tries a request several times while it makes sense, and turns its failure into a DiTError. */
  private async request<T>(what: string, action: () => Promise<T>, most = attempts): Promise<T> {
    if (/^(1|on|yes|true)$/i.test(process.env.HF_HUB_OFFLINE ?? '')) {
      throw new Unreachable(`${this.id}: ${what} is not in the cache and HF_HUB_OFFLINE is set`)
    }
    for (let attempt = 1; ; ++attempt) {
      this.signal?.throwIfAborted()
      try {
        return await action()
      } catch (cause) {
        this.signal?.throwIfAborted()
        const failure = this.explain(what, cause)
        if (!(failure instanceof Unreachable) || attempt >= most) throw failure
        await delay(
          250 * 2 ** attempt,
          undefined,
          this.signal ? { signal: this.signal } : {},
        ).catch(() => this.signal?.throwIfAborted())
      }
    }
  }

  private explain(what: string, cause: unknown): unknown {
    if (cause instanceof DiTError) return cause
    if (isError(cause) && 'syscall' in cause && 'path' in cause) {
      return fileError(this.folder, 'write', cause)
    }
    const start = `${this.id}: cannot get ${what} from ${this.access.hubUrl}`
    if (!(cause instanceof HubApiError)) {
      const text = isError(cause) ? cause.message : String(cause)
      const inner = isError(cause) && isError(cause.cause) ? ` (${cause.cause.message})` : ''
      return new Unreachable(`${start}: ${text}${inner}. Check the network, then try again`, {
        cause,
      })
    }
    const status = cause.statusCode
    const answered = `${start}: the hub answered ${status}`
    if (status >= 500 || status === 429) {
      return new Unreachable(`${answered}. Try again later`, { cause })
    }
    const advice: Record<number, string> = {
      401: 'It does not exist, or is private or gated: set HF_TOKEN to a token that may read it',
      403: 'The token may not read it: accept its terms on its page, or use another token',
      404: 'There is no such repository, revision or file, and no such local path',
    }
    const text = advice[status] ?? cause.message
    return new DiTError('ERR_DIT_FILE', `${answered}. ${text}`, { cause })
  }
}

/** The hub did not do its part; another attempt may succeed, and the cache may do instead. */
class Unreachable extends DiTError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('ERR_DIT_FILE', message, options)
  }
}

async function wrapFile<T>(file: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action()
  } catch (cause) {
    throw fileError(file, 'write', cause)
  }
}
