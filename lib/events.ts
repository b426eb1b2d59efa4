import type { RawImage } from './image.js'
import type { Latents } from './sampling.js'

/** After a step of the sampler. */
export interface ProgressEvent {
  type: 'progress'
  /** Solver steps done, of all images of the call together. */
  step: number
  /** Solver steps in all: images times steps per image. */
  steps: number
}

/** What an image looks like so far: the model's prediction of the end, decoded. */
export interface PreviewEvent {
  type: 'preview'
  /** Which image of the call. */
  index: number
  image: RawImage
  /** Solver steps of this image, done and in all. */
  step: number
  steps: number
}

/** How long a call took, in seconds: its solver steps, and the decoding of its images. */
export interface Timings {
  sampleSeconds: number
  decodeSeconds: number
}

/** The last event of `dit.stream`. */
export interface ImagesEvent extends Timings {
  type: 'images'
  images: RawImage[]
}

/** The last event of `dit.stream` with `output: 'latent'`. */
export interface LatentsEvent extends Timings {
  type: 'latents'
  latents: Latents
}
