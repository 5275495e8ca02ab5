// Times a prefill of 512 tokens and 64 tokens of decoding, once with runahead and once with llama.cpp, again and again, each in a process of its own.
// Arguments: the command runahead, a GGUF file, the number of turns.
import { execFileSync } from "node:child_process";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";

const PROMPT = 512;
const DECODE = 64;
const threads = availableParallelism();

/** Tokens per second of prefill and decode, and what llama.cpp says of itself. */
async function llamaCpp(modelPath) {
    const { getLlama, LlamaLogLevel } = await import("node-llama-cpp");
    const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.error });
    const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
    const context = await model.createContext({ contextSize: PROMPT + 2 * DECODE, batchSize: PROMPT, threads, sequences: 1 });
    const sequence = context.getSequence();
    const run = async () => {
        await sequence.clearHistory();
        const tokens = Array.from({ length: PROMPT }, (_, i) => 500 + ((i * 31) % 40000));
        const times = [performance.now()];
        for await (const _ of sequence.evaluate(tokens, { temperature: 0 })) {
            times.push(performance.now());
            // The first token is the prefill's.
            if (times.length === DECODE + 2) break;
        }
        if (times.length !== DECODE + 2) throw new Error(`the model ended its answer after ${times.length - 1} tokens`);
        return { prefill: (PROMPT / (times[1] - times[0])) * 1e3, decode: (DECODE / (times.at(-1) - times[1])) * 1e3 };
    };
    await run(); // to warm up
    return { ...(await run()), build: `${llama.llamaCppRelease.release}: ${llama.systemInfo.trim()}` };
}

function runahead(command, model) {
    const args = ["bench", "-m", model, "-p", PROMPT, "-n", DECODE, "-r", 1, "--devices", "cpu", "-o", "json"];
    const rows = JSON.parse(execFileSync(command, args.map(String), { stdio: ["ignore", "pipe", "ignore"] }));
    const rate = (decode) => rows.find((row) => (row.mode === "decode") === decode).tokens_per_s;
    return { prefill: rate(false), decode: rate(true) };
}

function median(values) {
    const sorted = values.toSorted((a, b) => a - b);
    return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

const self = fileURLToPath(import.meta.url);
if (process.argv[2] === "--llama-cpp") {
    console.log(JSON.stringify(await llamaCpp(process.argv[3])));
    process.exit(0);
}
const [command, model, turns] = process.argv.slice(2);
const pairs = Array.from({ length: Number(turns) }, () => {
    const theirs = JSON.parse(execFileSync(process.execPath, [self, "--llama-cpp", model], { encoding: "utf8" }));
    return { ours: runahead(command, model), theirs };
});
console.log(`llama.cpp ${pairs[0].theirs.build}`);
for (const what of ["prefill", "decode"]) {
    const all = (side) => pairs.map((pair) => pair[side][what]);
    const ratios = pairs.map((pair) => pair.ours[what] / pair.theirs[what]);
    const [ours, theirs, ratio] = [all("ours"), all("theirs"), ratios].map(median);
    const range = `${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}`;
    console.log(`${what}: runahead ${ours.toFixed(0)} token/s, llama.cpp ${theirs.toFixed(0)} token/s, ratio ${ratio.toFixed(2)} (${range})`);
}
