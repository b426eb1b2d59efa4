// The package's entry points, from the dist/ that the runner built. What npm packs: pack.test.ts.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

const root = fileURLToPath(new URL('..', import.meta.url))
const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))

/** What a program prints that is run by node in the package's folder. */
function node(...args: string[]): string {
  return execFileSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
}

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

test('there is no install script, which package managers block or ask about', () => {
  for (const name of ['preinstall', 'install', 'postinstall'])
    assert.not.ok(name in manifest.scripts)
})

test('the lock file names no registry', () => {
  const { packages } = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8'))
  const resolved = Object.entries(packages).filter(([, entry]) => 'resolved' in (entry as object))
  assert.equal(resolved, [])
})

test.run()
