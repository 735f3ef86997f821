// How a thread reads and writes a slot, and how the blocks that share a row reach one another. The compiler makes one wide
// load of a slot, and narrow stores of all but its first; so both are spelled out. What a kernel writes it never reads, so
// neither keeps the compiler from loading parameters early.
#pragma once

#ifndef ANYNORM_EMULATED  // which brings its own
#define SHARED(type, name, count) __shared__ type name[count]

template <class S>
__device__ __forceinline__ S read_slot(const S* from) {
    static_assert(sizeof(S) == 16, "a slot is 16 bytes");
    uint4 words;
    asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(from));
    return *(S*)&words;
}

template <class S>
__device__ __forceinline__ void write_slot(S* to, const S& slot) {
    static_assert(sizeof(S) == 16, "a slot is 16 bytes");
    const uint4& words = *(const uint4*)&slot;
    asm volatile("st.global.L1::no_allocate.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w));
}

// The same slot, of which the compiler knows nothing: it stays as it is in four registers from one pass over the row to
// the next, where its elements, converted or in a register each, would take up to four times as many.
template <class S>
__device__ __forceinline__ S unconverted(const S& slot) {
    uint4 words = *(const uint4*)&slot;
    asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
    return *(S*)&words;
}

// Shared memory of the size that the block was started with.
template <class S>
__device__ __forceinline__ S* block_room() {
    extern __shared__ uint4 room[];
    return (S*)room;
}

// Copy a slot to shared memory past the registers, or zeros.
template <class S>
__device__ __forceinline__ void copy_to_room(S* to, const S* from, bool is_there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(is_there ? 16 : 0));
    asm volatile("cp.async.commit_group;");
#else
    *to = is_there ? read_slot(from) : S{};
#endif
}

// Wait for this thread's copies but the last so many.
template <int LAST>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LAST) : "memory");
#endif
}

__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// What comes from the blocks of a cluster, this one among them, in messages whose arrival is counted: a barrier of the
// cluster would also wait for all that its threads have written to global memory. There are two rooms for messages, taken
// in turns, so that nobody sends what comes next to where another block still reads.
struct Inbox {
    int turn = 0, parity = 0;

    __device__ __forceinline__ static unsigned counter(int turn) {
        SHARED(unsigned long long, counters, 2);
        return (unsigned)__cvta_generic_to_shared(counters + turn);
    }

    // Nobody may send before all blocks have opened theirs and waited for the cluster.
    __device__ void open() const {
        if (threadIdx.x == 0) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(counter(0)) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(counter(1)) : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        arrive_at_cluster();
    }

    // Send a value to another block, to the place that `place` is in this one's shared memory.
    template <class S>
    __device__ __forceinline__ void send(unsigned block, S* place, const S& value) const {
        unsigned here = (unsigned)__cvta_generic_to_shared(place), there, counted;
        asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(block));
        asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(counter(turn)), "r"(block));
        if constexpr (alignof(S) % 8 == 0) {
            const unsigned long long* words = (const unsigned long long*)&value;
#pragma unroll
            for (unsigned i = 0; i < sizeof(S) / 8; i++)
                asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(there + 8 * i),
                             "l"(words[i]), "r"(counted)
                             : "memory");
        } else {
            const unsigned* words = (const unsigned*)&value;
#pragma unroll
            for (unsigned i = 0; i < sizeof(S) / 4; i++)
                asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(there + 4 * i),
                             "r"(words[i]), "r"(counted)
                             : "memory");
        }
    }

    // Wait for messages of so many bytes; all threads of the block do, before any of them sends again.
    __device__ void receive(unsigned nbytes) {
        if (threadIdx.x == 0)
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(counter(turn)), "r"(nbytes) : "memory");
        unsigned done = 0;
        while (!done)
            asm volatile("{\n.reg .pred p;\n"
                         "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                         "selp.u32 %0, 1, 0, p;\n}"
                         : "=r"(done)
                         : "r"(counter(turn)), "r"(parity)
                         : "memory");
        parity ^= turn, turn ^= 1;
    }
};
#endif

// That of which each thread has slots of its own, one every `threads`; so nobody has to wait for others.
template <class S>
__device__ __forceinline__ S* own_room() {
    return block_room<S>() + threadIdx.x;
}
