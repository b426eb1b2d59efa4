// Why the native part cannot be used on this system, and what helps.

import type { SystemFacts } from './doctor/machine.js'

/** @internal */
export interface Unfit {
  problem: string
  advice: string
}

/** @internal */
export function buildAdvice(root: string): string {
  return (
    'install cmake, g++ and oneDNN (Debian, Ubuntu: apt-get install cmake g++ libdnnl-dev), then run ' +
    `\`npm run build:native\` in ${root}`
  )
}

const made = 'binaries are made for linux-x64 with glibc 2.34 or newer'
const newer = 'Use a newer system (Debian 12, Ubuntu 22.04, RHEL 9 or newer)'
const withGlibc = 'Use an image with glibc, such as node:22-slim in place of node:22-alpine'

/** Where the package holds no binary for this system. @internal */
export function whyAbsent({ platform, arch, libc }: SystemFacts, root: string): Unfit {
  const build = `To build one here, ${buildAdvice(root)}`
  if (platform !== 'linux') {
    return {
      problem: `There is no binary for ${platform}-${arch}: ${made}`,
      advice: 'Run it on Linux: in a container, a virtual machine or, on Windows, WSL',
    }
  }
  if (arch !== 'x64') {
    return { problem: `There is no binary for ${platform}-${arch}: ${made}`, advice: build }
  }
  if (libc !== 'glibc') {
    return {
      problem: `There is no binary for this system, whose C library is not glibc: ${made}`,
      advice: `${withGlibc}, or ${buildAdvice(root)}`,
    }
  }
  return {
    problem: `The package in ${root} has no binary, though there is one for this system`,
    advice: `Install it from the npm registry, which has them. ${build}`,
  }
}

/**
 * Where the dynamic loader refused a binary because of the system's own libraries; undefined: it did
 * for another reason.
 *
 * @internal
 */
export function whyRefused(
  file: string,
  reason: string,
  { libc, glibc }: Pick<SystemFacts, 'libc' | 'glibc'>,
  root: string,
): Unfit | undefined {
  if (libc !== 'glibc') {
    return {
      problem: `The binary ${file} needs glibc; this system has another C library (${reason})`,
      advice: `${withGlibc}, or ${buildAdvice(root)}`,
    }
  }
  const [, library, version] =
    /version `(GLIBC|GLIBCXX|CXXABI)_([\d.]+)' not found/.exec(reason) ?? []
  if (library === undefined) return undefined
  const what =
    library === 'GLIBC'
      ? `glibc ${version} or newer, this system has ${glibc}`
      : `a newer libstdc++ (${library}_${version})`
  return {
    problem: `The binary ${file} needs ${what}`,
    advice: `${newer}, or ${buildAdvice(root)}`,
  }
}
