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

/**
 * What an image looks like so far: the model's prediction of the end, as the option `preview` has it
 * shown.
 */
export interface PreviewEvent {
  type: 'preview'
  /** Which image of the call. */
  index: number
  /** Of the size of the latent for previews of the kind 'linear', of the image for 'decode'. */
  image: RawImage
  /** Solver steps of this image that are done. */
  step: number
  /** Solver steps of this image in all. */
  steps: number
}

/** How long a call took, in seconds: waiting, its solver steps, and the decoding of its images. */
export interface Timings {
  /** From the call to the first step of its first image. */
  queueSeconds: number
  /** From the first step of the call's images to their last, shared with whatever is made meanwhile. */
  sampleSeconds: number
  /** Of the VAE's decoder, over all images; 0 without one. */
  decodeSeconds: number
}

/** The last event of `dit.stream`. */
export interface ImagesEvent extends Timings {
  type: 'images'
  /** One per label, in their order. */
  images: RawImage[]
}

/** The last event of `dit.stream` with `output: 'latent'`. */
export interface LatentsEvent extends Timings {
  type: 'latents'
  /** One per label, in their order. */
  latents: Latents
}
