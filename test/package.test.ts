// The package as npm would make it, from the dist/ that the runner built.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

const root = fileURLToPath(new URL('..', import.meta.url))
const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))

/** All strings of a JSON value. */
function strings(value: unknown): string[] {
  if (typeof value === 'string') return [value]
  return Object.values(value as object).flatMap(strings)
}

/** What a program prints that is run by node in the package's folder. */
function node(...args: string[]): string {
  return execFileSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
}

test('holds what a user needs and nothing else', () => {
  const output = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  const files: string[] = JSON.parse(output)[0].files.map((file: { path: string }) => file.path)
  const named = strings([manifest.main, manifest.types, manifest.exports, manifest.bin])
  for (const name of [...named, 'README.md', 'LICENSE', 'CMakeLists.txt', 'native/ops/ops.h']) {
    assert.ok(files.includes(path.normalize(name)), `${name} is missing`)
  }
  assert.equal(files.filter((file) => file.startsWith('demo/')).sort(), [
    'demo/README.md',
    'demo/grid.png',
    'demo/loss.png',
    'demo/model.safetensors',
  ])
  assert.equal(files.filter((file) => file.startsWith('scripts/')).sort(), [
    'scripts/build-native.mjs',
    'scripts/build-tools.mjs',
    'scripts/install.mjs',
  ])
  const folders = ['dist', 'native', 'scripts', 'demo', 'prebuilds']
  const others = files.filter((file) => !folders.includes(file.split('/')[0] ?? ''))
  assert.equal(others.sort(), [
    'CHANGELOG.md',
    'CMakeLists.txt',
    'LICENSE',
    'README.md',
    'THIRD_PARTY_NOTICES',
    'package.json',
  ])
})

test('import and require give the same thing', () => {
  const program = `
    import * as imported from 'dit-native'
    import { createRequire } from 'node:module'
    const required = createRequire(process.cwd() + '/')('dit-native')
    const names = Object.keys(required)
    console.log(names.length > 0 && names.every((name) => imported[name] === required[name]))`
  assert.is(node('--input-type=module', '--eval', program), 'true\n')
})

test('loading it loads no native code', () => {
  const program = `require('dit-native'); console.log(process.report.getReport().sharedObjects
    .filter((name) => name.endsWith('dit_native.node')).length)`
  assert.is(node('--eval', program), '0\n')
})

test('the command runs as npm would run it', () => {
  const command = path.join(root, manifest.bin.dit)
  assert.ok(existsSync(command))
  const { status, stdout } = spawnSync(command, ['--version'], { encoding: 'utf8' })
  assert.is(status, 0)
  assert.is(stdout, `${manifest.version}\n`)
})

test('the lock file names no registry', () => {
  const { packages } = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8'))
  const resolved = Object.entries(packages).filter(([, entry]) => 'resolved' in (entry as object))
  assert.equal(resolved, [])
})

test.run()
