import type { ImagesEvent, LatentsEvent, Timings } from './events.js'
import { splitImages } from './image.js'
import { type Engine, jobsAtOnce } from './jobs.js'
import type { Output, SampleOptions } from './options.js'
import { bytesOf, Gathered } from './payloads.js'
import { relay, type SamplePlan } from './sampling.js'

/** Makes what a call asks for, in as many jobs as it was cut into. @internal */
export async function runSample(
  engine: Engine,
  { parts, made, call }: SamplePlan,
  given: SampleOptions<Output>,
): Promise<ImagesEvent | LatentsEvent> {
  const wantsLatents = given.output === 'latent'
  const relayed = given.onProgress && relay(parts, made, given.onProgress)
  const latents = new Gathered(made.length)
  const timings: Timings = {
    queueSeconds: Number.POSITIVE_INFINITY,
    sampleSeconds: 0,
    decodeSeconds: 0,
  }
  const images = await engine.admitted(call, given.signal, (number) =>
    engine.runAll(
      parts.map(({ request, begin, end }, part) => ({
        start: (model) => model.sample({ ...request, call: number }),
        onEvent: relayed && ((event) => relayed(event, part)),
        finish(done) {
          timings.queueSeconds = Math.min(timings.queueSeconds, done.queueSeconds)
          timings.sampleSeconds = Math.max(timings.sampleSeconds, done.sampleSeconds)
          timings.decodeSeconds += done.decodeSeconds
          if (!wantsLatents) return splitImages(bytesOf(done), made.slice(begin, end))
          latents.add(done, begin)
          return []
        },
      })),
      given.signal,
      engine.stats().maxLanes + jobsAtOnce, // all lanes, where every job makes one image
    ),
  )
  if (!wantsLatents) return { type: 'images', images: images.flat(), ...timings }
  const seeds = made.map(({ seed }) => seed)
  const classes = made.map(({ label }) => label)
  return { type: 'latents', latents: { ...latents.tensor, seeds, labels: classes }, ...timings }
}
