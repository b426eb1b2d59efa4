// A route handler for Next.js (App Router): GET gives a PNG, POST server-sent events while the image forms.
//
//   <img src="/api/images?label=Sneaker&seed=1" />
//   curl -N -d '{"label": "Sneaker"}' http://localhost:3000/api/images
import { DiTError, type SampleOptions, type StreamEvent } from 'dit-native'
import { model } from '../../../lib/model'

export const runtime = 'nodejs' // native code: not in the edge runtime
export const dynamic = 'force-dynamic' // each request is an image of its own

export async function GET(request: Request): Promise<Response> {
  const { searchParams } = new URL(request.url)
  const [seed, steps] = [searchParams.get('seed'), searchParams.get('steps')]
  try {
    const { label, options } = read({
      label: searchParams.get('label') ?? '',
      ...(seed !== null && { seed: Number(seed) }),
      ...(steps !== null && { steps: Number(steps) }),
    })
    const dit = await model()
    // The signal says that the client has left: no step is made for nobody.
    const [image] = await dit.sample(label, { ...options, signal: request.signal })
    if (image === undefined) throw new Error('one label makes one image')
    const headers = { 'Content-Type': 'image/png', 'X-Seed': String(image.seed) }
    return new Response(new Uint8Array(await image.toPNG()), { headers })
  } catch (error) {
    return failure(error, request.signal)
  }
}

export async function POST(request: Request): Promise<Response> {
  try {
    const { label, options } = read(await request.json())
    const dit = await model()
    const left = new AbortController()
    const signal = AbortSignal.any([request.signal, left.signal])
    const events = dit.stream(label, { ...options, preview: 5, signal })
    // A wrong label is found before the first event: it gets a status of its own.
    const first = await events.next()
    const stream = new ReadableStream<Uint8Array>({
      async start(controller) {
        const send = (event: string, data: object) => {
          const text = `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`
          controller.enqueue(new TextEncoder().encode(text))
        }
        try {
          for (let next = first; !next.done; next = await events.next()) {
            const event = next.value as StreamEvent
            if (event.type === 'progress') send('progress', event)
            if (event.type === 'preview') send('preview', { png: await base64(event.image) })
            if (event.type === 'images') {
              const [image] = event.images
              if (image) send('image', { png: await base64(image), seed: String(image.seed) })
            }
          }
          controller.close()
        } catch (error) {
          if (!signal.aborted) send('error', { message: (error as Error).message })
          if (!left.signal.aborted) controller.close()
        }
      },
      cancel: () => left.abort(),
    })
    const headers = { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' }
    return new Response(stream, { headers })
  } catch (error) {
    return failure(error, request.signal)
  }
}

interface Wanted {
  label: number | string
  options: SampleOptions
}

/** What clients may choose, and how much of it. Everything else of it is checked by dit-native. */
function read(given: unknown): Wanted {
  const {
    label,
    seed,
    steps = 25,
  } = (given ?? {}) as { label?: unknown; seed?: number; steps?: number }
  const options = { steps: Math.min(steps, 250), guidance: 2, ...(seed !== undefined && { seed }) }
  const text = String(label) // one label: clients could send a list of any length, too
  return { label: /^\d+$/.test(text) ? Number(text) : text, options }
}

async function base64(image: { toPNG(): Promise<Buffer> }): Promise<string> {
  return (await image.toPNG()).toString('base64')
}

function failure(error: unknown, signal: AbortSignal): Response {
  if (signal.aborted) return new Response(null, { status: 499 }) // nobody is there to read it
  if (error instanceof SyntaxError) return Response.json({ message: 'no JSON' }, { status: 400 })
  if (!(error instanceof DiTError)) throw error
  const { code, message, retryAfter = 1 } = error
  if (code === 'ERR_DIT_OPTION') return Response.json({ code, message }, { status: 400 })
  if (code !== 'ERR_DIT_BUSY') throw error
  const headers = { 'Retry-After': String(Math.ceil(retryAfter)) }
  return Response.json({ code, message }, { status: 503, headers })
}
