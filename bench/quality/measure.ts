// What is said of a model's samples, given the classifier.

import type { RawImage } from '../../lib/index.js'
import { classes, classify, featureCount, type Seen } from './classifier.js'
import { frechetDistance, gaussianOf } from './frechet.js'
import { atModelSize, firstOfEach, fromModel, type Labelled } from './images.js'
import type { Network } from './network.js'

/** Accuracies are fractions of 1. */
export interface Quality {
  /** Samples. */
  n: number
  /** Of the classifier on the real test images, as they are and as they look at the model's size. */
  realAccuracy: number
  realAccuracyAtModelSize: number
  /** Of the samples' classes, by the classifier. */
  accuracy: number
  accuracyPerClass: number[]
  /** [wanted class][class seen]: samples. */
  confusion: number[][]
  /** accuracy / realAccuracyAtModelSize. */
  accuracyRatio: number
  /** The Fréchet distance in the classifier's features to the real test images at the model's size. */
  frechetDistanceInClassifierFeatures: {
    samples: number
    /** Of as many real training images at the model's size, for comparison. */
    realTrainingImages: number
  }
}

function accuracyOf({ predicted }: Seen, labels: Uint8Array): number {
  return predicted.filter((label, i) => label === labels[i]).length / labels.length
}

/** The classes 0 to 9 in turn: as many samples of each. */
export function labelsOf(n: number): number[] {
  if (n < 2 * classes || n % classes !== 0) {
    throw new Error(`--n: expected a multiple of ${classes} of at least ${2 * classes}, got ${n}`)
  }
  return Array.from({ length: n }, (_, i) => i % classes)
}

/**
 * Judges samples, as many of each class, by a classifier and real images.
 *
 * @example
 * const quality = measure(network, await dit.sample(labelsOf(1000)), { train, test })
 */
export function measure(
  network: Network,
  samples: readonly RawImage[],
  real: { train: Labelled; test: Labelled },
): Quality {
  const n = samples.length
  const size = samples[0]?.width ?? 0
  const wanted = Uint8Array.from(samples, ({ label }) => label as number)
  const seen = classify(network, Uint8Array.from(samples.flatMap((image) => [...fromModel(image)])))
  const asShown = atModelSize(real.test, size)
  const test = classify(network, asShown.pixels)
  const some = atModelSize(firstOfEach(real.train, n / classes), size)
  const train = classify(network, some.pixels)

  const confusion = Array.from({ length: classes }, () => new Array<number>(classes).fill(0))
  for (const [i, label] of wanted.entries()) {
    const row = confusion[label] as number[]
    const guess = seen.predicted[i] as number
    row[guess] = (row[guess] as number) + 1
  }
  const accuracy = accuracyOf(seen, wanted)
  const realAccuracyAtModelSize = accuracyOf(test, asShown.labels)
  const distance = ({ features }: Seen) =>
    frechetDistance(gaussianOf(features, featureCount), gaussianOf(test.features, featureCount))
  return {
    n,
    realAccuracy: accuracyOf(classify(network, real.test.pixels), real.test.labels),
    realAccuracyAtModelSize,
    accuracy,
    accuracyPerClass: confusion.map((row, label) => (row[label] as number) / (n / classes)),
    confusion,
    accuracyRatio: accuracy / realAccuracyAtModelSize,
    frechetDistanceInClassifierFeatures: {
      samples: distance(seen),
      realTrainingImages: distance(train),
    },
  }
}
