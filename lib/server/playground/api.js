// What the page asks the server, and its answers.

const tokenKey = 'dit-token'

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {ModelFacts} dit
 *
 * @typedef {object} ModelFacts
 * @property {{ width: number, height: number, channels: number }} image
 * @property {number} numClasses
 * @property {boolean} nullClass
 * @property {boolean} vae
 * @property {string} device
 * @property {string} precision
 * @property {string[]} samplers
 * @property {{ sampler: string, steps: number, guidance: number }} defaults
 * @property {{ images: number, steps: number }} limits
 *
 * @typedef {{ id: number, name: string }} ClassEntry
 *
 * @typedef {object} FinishedImage
 * @property {number} index
 * @property {number} label
 * @property {number | string} seed
 * @property {number} width
 * @property {number} height
 * @property {string} mime
 * @property {string} data base64
 *
 * @typedef {{ event: 'queued', data: { id: string } }
 *   | { event: 'progress', data: { step: number, steps: number } }
 *   | { event: 'preview', data: { index: number, step: number, steps: number, image: string } }
 *   | { event: 'done', data: { images: FinishedImage[] } }
 *   | { event: 'error', data: { code: string, message: string } }} ServerEvent
 */

/** A refusal, or no answer at all: then `status` is 0. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{ status?: number, code?: string, retryAfter?: number | undefined, suggestions?: ClassEntry[] }} [more]
   */
  constructor(message, { status = 0, code = '', retryAfter, suggestions = [] } = {}) {
    super(message)
    this.status = status
    this.code = code
    /** Seconds. */
    this.retryAfter = retryAfter
    this.suggestions = suggestions
  }
}

/** Asks the user for a token; resolves to undefined when there is none. @type {(wrong: boolean) => Promise<string | undefined>} */
let askForToken = async () => undefined

/** @param {typeof askForToken} ask */
export function onTokenNeeded(ask) {
  askForToken = ask
}

/**
 * @param {string} path Relative to the page.
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} One that is ok.
 */
async function request(path, options = {}) {
  for (let wrong = false; ; wrong = true) {
    const token = sessionStorage.getItem(tokenKey)
    const headers = new Headers(options.headers)
    if (token !== null) headers.set('authorization', `Bearer ${token}`)
    const response = await fetch(path, { ...options, headers }).catch((error) => {
      if (options.signal?.aborted) throw error
      throw new ApiError('The server does not answer')
    })
    if (response.ok) return response
    const error = await errorOf(response)
    if (error.status !== 401) throw error
    sessionStorage.removeItem(tokenKey)
    const entered = await askForToken(wrong || token !== null)
    if (entered === undefined) throw error
    sessionStorage.setItem(tokenKey, entered)
  }
}

/** @param {Response} response */
async function errorOf(response) {
  const body = await response.json().catch(() => undefined)
  const { message, code, suggestions } = body?.error ?? {}
  const wait = Number(response.headers.get('retry-after') ?? Number.NaN)
  return new ApiError(message ?? `The server answered ${response.status}`, {
    status: response.status,
    code,
    suggestions,
    retryAfter: Number.isFinite(wait) ? wait : undefined,
  })
}

/** @returns {Promise<Model[]>} */
export async function listModels() {
  const { data } = await (await request('v1/models')).json()
  return data
}

/**
 * All classes of a model.
 *
 * @param {string} model
 * @returns {Promise<ClassEntry[]>}
 */
export async function listClasses(model) {
  const response = await request(`v1/models/${encodeURIComponent(model)}/classes`)
  const { data } = await response.json()
  return data
}

/**
 * Asks for images and tells what happens to them, the last of it `done` or `error`. When the signal is
 * aborted, the server is told, and this rejects with the signal's reason.
 *
 * @param {Record<string, unknown>} body
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<ServerEvent, void>}
 */
export async function* makeImages(body, signal) {
  const response = await request('v1/images', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...body, wait: false }),
    // Not the signal: a request that was accepted must be cancelled by its id.
  })
  const { id } = await response.json()
  const path = `v1/images/${encodeURIComponent(id)}`
  const cancel = () => {
    // The end of the event stream cancels as well; this does it at once.
    request(path, { method: 'DELETE', keepalive: true }).catch((error) => {
      if (!(error instanceof ApiError)) throw error
    })
  }
  if (signal.aborted) {
    cancel()
    throw signal.reason
  }
  signal.addEventListener('abort', cancel, { once: true })
  try {
    const events = await request(`${path}/events`, {
      headers: { accept: 'text/event-stream' },
      signal,
    })
    yield* readEvents(events, signal)
  } finally {
    signal.removeEventListener('abort', cancel)
  }
}

/**
 * Server-sent events. EventSource cannot send a token, and would connect again by itself.
 *
 * @param {Response} response
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<ServerEvent, void>}
 */
async function* readEvents(response, signal) {
  if (response.body === null) throw new ApiError('The server sent no events')
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (signal.aborted) throw signal.reason
        throw new ApiError('The connection to the server was lost', { code: String(error) })
      })
      if (done) throw new ApiError('The connection to the server was lost')
      rest += value.replaceAll('\r\n', '\n')
      const blocks = rest.split('\n\n')
      rest = blocks.pop() ?? ''
      for (const block of blocks) {
        const event = parseEvent(block)
        if (event === undefined) continue
        yield event
        if (event.event === 'done' || event.event === 'error') return
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined)
  }
}

/**
 * @param {string} block
 * @returns {ServerEvent | undefined} undefined: a comment, which keeps the connection alive.
 */
function parseEvent(block) {
  let event = 'message'
  const data = []
  for (const line of block.split('\n')) {
    if (line.startsWith('event:')) event = line.slice(6).trim()
    if (line.startsWith('data:')) data.push(line.slice(5).trimStart())
  }
  if (data.length === 0) return undefined
  return /** @type {ServerEvent} */ ({ event, data: JSON.parse(data.join('\n')) })
}
