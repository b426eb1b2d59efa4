// The binary without lib/ around it.

import type { JobEvent, ModelSpec } from '../../bindings.js'
import { native } from '../../lib/native.js'

/** A model of 24 channels, fresh. */
export const spec: ModelSpec = {
  device: 'cpu',
  precision: 'fp32',
  threads: 1,
  maxLanes: 2,
  maxQueue: null,
  dit: {
    config: {
      depth: 1,
      hidden: 24,
      heads: 2,
      patchSize: 2,
      latentSize: [4, 4],
      channels: 1,
      numClasses: 2,
      nullClass: true,
      learnSigma: false,
      mlpHidden: 96,
    },
    tensors: null,
    stored: null,
    seed: 1n,
  },
  vae: null,
  schedule: { kind: 'linear', steps: 1000, betaStart: 1e-4, betaEnd: 0.02 },
}

/** A model whose jobs are promises of their last event. */
export function open() {
  const waiting = new Map<number, (event: JobEvent) => void>()
  const model = new (native().Model)((event) => {
    if (event.kind === 'done' || event.kind === 'failed') waiting.get(event.job)?.(event)
  })
  const last = (job: number) =>
    new Promise<JobEvent>((resolve) => {
      waiting.set(job, resolve)
    })
  return { model, last }
}
