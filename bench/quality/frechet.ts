// The Fréchet distance between two normal distributions fitted to features (Dowson and Landau 1982;
// Heusel et al. 2017 take Inception's features and call it FID, which this is not).

import { EigenvalueDecomposition, Matrix } from 'ml-matrix'

/** A normal distribution of d features. */
export interface Gaussian {
  /** [d] */
  readonly mean: Float64Array
  /** [d, d] */
  readonly covariance: Matrix
}

/**
 * Mean and covariance (divisor n - 1) of features [n, d]. Throws for fewer than two rows.
 *
 * @example
 * frechetDistance(gaussianOf(classify(network, samples).features, 64), gaussianOf(real, 64))
 */
export function gaussianOf(features: Float64Array, d: number): Gaussian {
  const n = features.length / d
  if (!Number.isInteger(n) || n < 2) {
    throw new Error(`Expected at least 2 rows of ${d} features but got ${features.length} numbers`)
  }
  const mean = new Float64Array(d)
  for (let i = 0; i < features.length; i++) {
    mean[i % d] = (mean[i % d] as number) + (features[i] as number) / n
  }
  const centred = Float64Array.from(features, (value, i) => value - (mean[i % d] as number))
  const covariance = Matrix.zeros(d, d)
  for (let i = 0; i < d; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = 0
      for (let row = 0; row < centred.length; row += d) {
        sum += (centred[row + i] as number) * (centred[row + j] as number)
      }
      covariance.set(i, j, sum / (n - 1)).set(j, i, sum / (n - 1))
    }
  }
  return { mean, covariance }
}

/**
 * Of a symmetric matrix without negative eigenvalues. Those that are rounding are 0: their square
 * roots, 1e-8 of the largest's, would not be.
 */
function decompose(symmetric: Matrix) {
  const { realEigenvalues, eigenvectorMatrix } = new EigenvalueDecomposition(symmetric, {
    assumeSymmetric: true,
  })
  const rounding = Math.max(...realEigenvalues) * symmetric.rows * Number.EPSILON
  const values = realEigenvalues.map((value) => (value > rounding ? value : 0))
  return { values, vectors: eigenvectorMatrix }
}

/**
 * |mean1 - mean2|^2 + trace(C1 + C2 - 2 sqrt(C1 C2)), at least 0.
 *
 * C1 C2 has the eigenvalues of sqrt(C1) C2 sqrt(C1), which is symmetric: so two symmetric
 * decompositions are enough, and singular covariances, as of few images, do no harm.
 */
export function frechetDistance(a: Gaussian, b: Gaussian): number {
  const { values, vectors } = decompose(a.covariance)
  const root = vectors.mmul(Matrix.diag(values.map(Math.sqrt))).mmul(vectors.transpose())
  const product = root.mmul(b.covariance).mmul(root)
  const symmetric = Matrix.add(product, product.transpose()).div(2)
  const common = decompose(symmetric).values.reduce((sum, value) => sum + Math.sqrt(value), 0)
  const apart = a.mean.reduce((sum, value, i) => sum + (value - (b.mean[i] as number)) ** 2, 0)
  return Math.max(0, apart + a.covariance.trace() + b.covariance.trace() - 2 * common)
}
