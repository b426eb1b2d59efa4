// A training that is killed (kill -9) at 50 random moments, while it trains and while it saves, goes on
// each time, and ends where one ends that nobody disturbed, bit for bit.
// timeout: 120s
import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { fixture, temporaryFolder } from './helpers/files.js'
import { weights } from './helpers/training.js'

const program = path.join(path.dirname(fixture()), 'helpers/train_child.mjs')
const kKills = 50
const kChains = 2 // trainings at the same time
const kLongest = 250 // milliseconds of training before the kill

interface Run {
  /** Where it went on from. */
  from: number | undefined
  killed: boolean
}

/** Trains until it has done `steps`, or for so many milliseconds of training. */
function run(out: string, steps: number, saveEvery: number, killAfter?: number): Promise<Run> {
  const args = [program, out, String(steps), String(saveEvery)]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  let from: number | undefined
  return new Promise((resolve, reject) => {
    child.stdout.setEncoding('utf8').once('data', (text: string) => {
      from = Number(text)
      if (killAfter !== undefined) sleep(killAfter).then(() => child.kill('SIGKILL'))
    })
    child.on('error', reject)
    child.on('close', (status, signal) => {
      if (status === 0 || signal === 'SIGKILL') resolve({ from, killed: signal === 'SIGKILL' })
      else reject(new Error(`the training ended with status ${status}, signal ${signal}`))
    })
  })
}

const isPart = (name: string) => name.endsWith('.tmp')

const steps = (out: string) =>
  readdirSync(path.join(out, 'checkpoints'))
    .map((name) => /^step-(\d+)/.exec(name)?.[1])
    .filter((step) => step !== undefined)
    .map(Number)

/** Kills a training over and over: the last step that was saved, and how many kills came amid a save. */
async function harass(out: string): Promise<{ saved: number; amid: number }> {
  let saved = 0
  let amid = 0
  for (let kill = 0; kill < kKills / kChains; kill++) {
    const { from, killed } = await run(out, 1e6, 1, kLongest * Math.random())
    assert.ok(killed)
    assert.is(from, saved, 'it went on from the latest checkpoint')
    const latest = path.join(out, 'checkpoints/latest')
    const state = existsSync(latest)
      ? readFileSync(path.join(latest, 'trainer.json'), 'utf8')
      : '{}'
    const { step = 0 } = JSON.parse(state) as { step?: number }
    assert.ok(step >= saved, `${step} after ${saved}`)
    saved = step
    if (readdirSync(path.join(out, 'checkpoints')).some(isPart)) amid++
  }
  return { saved, amid }
}

test(`killed ${kKills} times, a training ends as if it had not been`, async () => {
  const outs = Array.from({ length: kChains }, () => temporaryFolder())
  const chains = await Promise.all(outs.map(harass))
  const saved = chains.map((chain) => chain.saved)
  const amid = chains.reduce((sum, chain) => sum + chain.amid, 0)
  console.log(`saved ${saved.join(' and ')} steps; ${amid} kills came amid a save`)
  assert.ok(saved.every((step) => step > 0))
  assert.ok(amid > 0 && amid < kKills)
  const last = Math.max(...saved) + 3
  const undisturbed = temporaryFolder()
  await run(undisturbed, last, 1e6)
  const want = weights(path.join(undisturbed, 'checkpoints/latest'))
  for (const out of outs) {
    await run(out, last, 1e6)
    assert.equal(weights(path.join(out, 'checkpoints/latest')), want)
    assert.ok(steps(out).length <= 3, 'two are kept, and one that a kill left between two steps')
    const names = readdirSync(path.join(out, 'checkpoints'))
    assert.not.ok(names.some(isPart))
    const lines = readFileSync(path.join(out, 'metrics.jsonl'), 'utf8').trim().split('\n')
    assert.equal(
      lines.map((line) => JSON.parse(line).step),
      Array.from({ length: last }, (_, i) => i + 1),
    )
  }
})

test.run()
