// What is said where the native part cannot be used.
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { whyAbsent, whyRefused } from '../lib/platform.js'

const system = {
  node: '22.0.0',
  platform: 'linux',
  arch: 'x64',
  release: '6.1',
  distribution: null,
  libc: 'glibc' as const,
  glibc: '2.31',
}
const musl = { ...system, libc: 'musl or another' as const, glibc: null }

test('where there is no binary, it says for which systems there are, and what helps', () => {
  for (const [where, problem, advice] of [
    [
      { ...system, platform: 'darwin', arch: 'arm64' },
      /for darwin-arm64: .*glibc 2\.34/,
      /container/,
    ],
    [{ ...system, platform: 'win32' }, /for win32-x64/, /WSL/],
    [{ ...system, arch: 'arm64' }, /for linux-arm64/, /`npm run build:native` in \/here$/],
    [musl, /C library is not glibc/, /node:22-slim .*build:native/],
    [system, /in \/here has no binary/, /registry.*build:native/],
  ] as const) {
    const why = whyAbsent(where, '/here')
    assert.match(why.problem, problem)
    assert.match(why.advice, advice)
  }
})

test('where the loader refuses one, it says what the system has and what it would need', () => {
  const old =
    "/lib/x86_64-linux-gnu/libm.so.6: version `GLIBC_2.34' not found (required by /b.node)"
  const why = whyRefused('/b.node', old, system, '/here')
  assert.is(why?.problem, 'The binary /b.node needs glibc 2.34 or newer, this system has 2.31')
  assert.match(why?.advice ?? '', /Debian 12, Ubuntu 22\.04, RHEL 9.*build:native` in \/here$/)
  const library = "libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by libdit_nn.so)"
  assert.match(
    whyRefused('/b.node', library, system, '/here')?.problem ?? '',
    /newer libstdc\+\+ \(GLIBCXX_3\.4\.29\)$/,
  )
  const missing = 'Error loading shared library ld-linux-x86-64.so.2: No such file or directory'
  assert.match(whyRefused('/b.node', missing, musl, '/here')?.advice ?? '', /node:22-slim/)
  assert.is(whyRefused('/b.node', 'file too short', system, '/here'), undefined)
})

test.run()
