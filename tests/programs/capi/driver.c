/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A network driver as one is written for BSD: malloc types for its structures, zones with constructors and limits for
 * packets and descriptors, an arena for the ids of its queues, kmem(9) for what has a size of its own. The hardware is
 * an array.
 *
 * Written against malloc(9), zone(9), vmem(9) and kmem(9).
 */
#include <sys/malloc.h>
#include <sys/kmem.h>
#include <sys/vmem.h>
#include <vm/uma.h>

#include "env.h"

MALLOC_DEFINE(M_XE, "xe", "xe(4) driver softc and rings");
MALLOC_DEFINE(M_XEMCAST, "xe mcast", "xe(4) multicast filters");
static MALLOC_DEFINE(M_XESTAT, "xe stats", "xe(4) per-queue statistics");
MALLOC_DEFINE_LIMIT(M_XELIM, "xe limited", "xe(4) what must stay small", 8192);
MALLOC_JUSTDEFINE(M_XELATE, "xe late", "xe(4) attached by hand");
MALLOC_DECLARE(M_XE);

#define XE_QUEUES	4
#define XE_RING		256
#define XE_MTU		1500
#define XE_PKT_MAGIC	0x7865706bu
#define XE_ETHER_LEN	6

struct xe_packet {
	uint32_t xp_magic;
	uint32_t xp_len;
	struct xe_packet *xp_next;
	int *xp_live;			/* count of the queue that owns it */
	uint8_t xp_data[XE_MTU];
};

struct xe_desc {
	struct xe_packet *xd_packet;
	uint64_t xd_flags;
};

struct xe_mcast {
	struct xe_mcast *xm_next;
	uint8_t xm_addr[XE_ETHER_LEN];
};

struct xe_queue {
	vmem_addr_t xq_id;
	struct xe_desc *xq_ring;
	uint64_t *xq_counters;
	unsigned int xq_head, xq_tail;
	int xq_live;
};

struct xe_softc {
	char *sc_name;
	struct xe_queue *sc_queue[XE_QUEUES];
	struct xe_mcast *sc_mcast;
	uma_zone_t sc_packets;
	uma_zone_t sc_jumbo;
	vmem_t *sc_ids;
};

/* ---- figures, as the program keeps them itself ---- */

static int inits, finis, ctors, dtors, refusals, actions;

static int
xe_packet_init(void *mem, int size, int flags)
{
	struct xe_packet *xp = mem;

	CHECK(size == (int)sizeof(*xp));
	CHECK((flags & (M_NOWAIT | M_WAITOK)) == M_NOWAIT || (flags & (M_NOWAIT | M_WAITOK)) == M_WAITOK);
	memset(xp->xp_data, 0xa5, sizeof(xp->xp_data));
	xp->xp_magic = XE_PKT_MAGIC;
	COUNT(inits);
	return 0;
}

static void
xe_packet_fini(void *mem, int size)
{
	struct xe_packet *xp = mem;

	CHECK(size == (int)sizeof(*xp));
	CHECK(xp->xp_magic == XE_PKT_MAGIC);
	xp->xp_magic = 0;
	COUNT(finis);
}

/* The argument is the queue that the packet is for; none is refused. */
static int
xe_packet_ctor(void *mem, int size, void *arg, int flags)
{
	struct xe_packet *xp = mem;
	struct xe_queue *xq = arg;

	(void)flags;
	CHECK(size == (int)sizeof(*xp));
	CHECK(xp->xp_magic == XE_PKT_MAGIC);
	if (xq == NULL) {
		COUNT(refusals);
		return ENXIO;
	}
	xp->xp_len = 0;
	xp->xp_next = NULL;
	xp->xp_live = &xq->xq_live;
	COUNT(xq->xq_live);
	COUNT(ctors);
	return 0;
}

static void
xe_packet_dtor(void *mem, int size, void *arg)
{
	struct xe_packet *xp = mem;

	CHECK(size == (int)sizeof(*xp));
	CHECK(arg == NULL || arg == (void *)xp->xp_next);
	__atomic_fetch_sub(xp->xp_live, 1, __ATOMIC_SEQ_CST);
	COUNT(dtors);
}

static void
xe_at_limit(uma_zone_t zone, int unused)
{
	(void)unused;
	CHECK(zone != NULL);
	COUNT(actions);
}

/* ---- the driver ---- */

static struct xe_queue *
xe_queue_create(struct xe_softc *sc)
{
	struct xe_queue *xq;

	xq = malloc(sizeof(*xq), M_XE, M_WAITOK | M_ZERO);
	if (vmem_alloc(sc->sc_ids, 1, M_NOWAIT | M_BESTFIT, &xq->xq_id) != 0) {
		free(xq, M_XE);
		return NULL;
	}
	xq->xq_ring = mallocarray(XE_RING, sizeof(*xq->xq_ring), M_XE, M_WAITOK | M_ZERO);
	xq->xq_counters = malloc_aligned(8 * sizeof(uint64_t), 64, M_XESTAT, M_NOWAIT | M_ZERO);
	CHECK(xq->xq_counters != NULL);
	CHECK(((uintptr_t)xq->xq_counters & 63) == 0);
	for (int i = 0; i < XE_RING; i++)
		CHECK(xq->xq_ring[i].xd_packet == NULL && xq->xq_ring[i].xd_flags == 0);
	return xq;
}

static void
xe_queue_destroy(struct xe_softc *sc, struct xe_queue *xq)
{
	CHECK(xq->xq_live == 0);
	vmem_free(sc->sc_ids, xq->xq_id, 1);
	zfree(xq->xq_counters, M_XESTAT);
	free(xq->xq_ring, M_XE);
	free(xq, M_XE);
}

static int
xe_enqueue(struct xe_softc *sc, struct xe_queue *xq, const void *data, uint32_t len)
{
	unsigned int next = (xq->xq_head + 1) % XE_RING;
	struct xe_packet *xp;

	if (next == xq->xq_tail)
		return ENOBUFS;
	xp = uma_zalloc_arg(sc->sc_packets, xq, M_NOWAIT);
	if (xp == NULL) {
		xq->xq_counters[1]++;
		return ENOMEM;
	}
	xp->xp_len = len;
	memcpy(xp->xp_data, data, len);
	xq->xq_ring[xq->xq_head].xd_packet = xp;
	xq->xq_head = next;
	xq->xq_counters[0]++;
	return 0;
}

/* What the interrupt handler does: takes what the hardware is done with. */
static int
xe_txeof(struct xe_softc *sc, struct xe_queue *xq)
{
	int done = 0;

	while (xq->xq_tail != xq->xq_head) {
		struct xe_desc *xd = &xq->xq_ring[xq->xq_tail];

		uma_zfree(sc->sc_packets, xd->xd_packet);
		xd->xd_packet = NULL;
		xq->xq_tail = (xq->xq_tail + 1) % XE_RING;
		done++;
	}
	return done;
}

static void
xe_add_mcast(struct xe_softc *sc, const uint8_t *addr)
{
	struct xe_mcast *xm = malloc(sizeof(*xm), M_XEMCAST, M_WAITOK);

	memcpy(xm->xm_addr, addr, XE_ETHER_LEN);
	xm->xm_next = sc->sc_mcast;
	sc->sc_mcast = xm;
}

static struct xe_softc *
xe_attach(int unit)
{
	struct xe_softc *sc = malloc(sizeof(*sc), M_XE, M_WAITOK | M_ZERO);

	sc->sc_name = kmem_asprintf("xe%d", unit);
	sc->sc_ids = vmem_create("xe queue ids", 16, 64, 1, 0, M_WAITOK);
	sc->sc_packets = uma_zcreate("xe packet", sizeof(struct xe_packet), xe_packet_ctor, xe_packet_dtor,
	    xe_packet_init, xe_packet_fini, UMA_ALIGN_PTR, 0);
	sc->sc_jumbo = uma_zcreate("xe jumbo", 9216, NULL, NULL, NULL, NULL, UMA_ALIGN_CACHE, UMA_ZONE_NOBUCKET);
	CHECK(sc->sc_ids != NULL && sc->sc_packets != NULL && sc->sc_jumbo != NULL);
	for (int i = 0; i < XE_QUEUES; i++) {
		sc->sc_queue[i] = xe_queue_create(sc);
		CHECK(sc->sc_queue[i]->xq_id == 16 + (vmem_addr_t)i);
	}
	return sc;
}

static void
xe_detach(struct xe_softc *sc)
{
	struct xe_mcast *xm;

	for (int i = 0; i < XE_QUEUES; i++) {
		xe_txeof(sc, sc->sc_queue[i]);
		xe_queue_destroy(sc, sc->sc_queue[i]);
	}
	while ((xm = sc->sc_mcast) != NULL) {
		sc->sc_mcast = xm->xm_next;
		free(xm, M_XEMCAST);
	}
	CHECK(vmem_size(sc->sc_ids, VMEM_ALLOC) == 0);
	uma_zdestroy(sc->sc_packets);
	uma_zdestroy(sc->sc_jumbo);
	vmem_destroy(sc->sc_ids);
	kmem_strfree(sc->sc_name);
	free(sc, M_XE);
}

/* ---- what is tried ---- */

static void
traffic(struct xe_softc *sc)
{
	static const char frame[] = "a frame of some bytes";

	int rounds = XE_QUEUES * (250 * env_effort() / 100);

	for (int round = 0; round < rounds; round++) {
		struct xe_queue *xq = sc->sc_queue[round % XE_QUEUES];

		for (int i = 0; i < 100; i++)
			CHECK(xe_enqueue(sc, xq, frame, sizeof(frame)) == 0);
		CHECK(xq->xq_live == 100);
		CHECK(strcmp((char *)xq->xq_ring[xq->xq_tail].xd_packet->xp_data, frame) == 0);
		CHECK(uma_zone_get_cur(sc->sc_packets) == 100);
		CHECK(xe_txeof(sc, xq) == 100);
	}
	CHECK(ctors == 100 * rounds && dtors == 100 * rounds);
	CHECK(inits > 0 && inits < 2000);
	CHECK(sc->sc_queue[0]->xq_counters[0] == 100 * (uint64_t)rounds / XE_QUEUES);
}

static void
limits(struct xe_softc *sc)
{
	struct xe_queue *xq = sc->sc_queue[1];
	void *jumbo[9], *item;
	int max = uma_zone_set_max(sc->sc_packets, 50);

	CHECK(max >= 50 && uma_zone_get_max(sc->sc_packets) == max);
	uma_zone_set_maxaction(sc->sc_packets, xe_at_limit);
	uma_zone_set_warning(sc->sc_packets, "the transmit queues have all packets");
	for (int i = 0; i < max; i++)
		CHECK(xe_enqueue(sc, xq, "x", 2) == 0);
	CHECK(uma_zone_exhausted(sc->sc_packets) && actions == 0);
	CHECK(xe_enqueue(sc, xq, "x", 2) == ENOMEM && xq->xq_counters[1] == 1);
	CHECK(actions >= 1);
	CHECK(xe_txeof(sc, xq) == max && !uma_zone_exhausted(sc->sc_packets));
	CHECK(xe_enqueue(sc, xq, "x", 2) == 0 && xe_txeof(sc, xq) == 1);
	uma_zone_set_max(sc->sc_packets, 0);

	/* A constructor that refuses fails the request, and costs nothing. */
	CHECK(uma_zalloc(sc->sc_packets, M_WAITOK) == NULL && refusals == 1);
	CHECK(uma_zone_get_cur(sc->sc_packets) == 0);

	uma_zone_reserve(sc->sc_jumbo, 4);
	uma_prealloc(sc->sc_jumbo, 8);
	for (int i = 0; i < 9; i++) {
		jumbo[i] = uma_zalloc(sc->sc_jumbo, M_NOWAIT | M_ZERO | M_USE_RESERVE);
		CHECK(jumbo[i] != NULL && ((uintptr_t)jumbo[i] & 63) == 0);
		for (int at = 0; at < 9216; at++)
			CHECK(((char *)jumbo[i])[at] == 0);
		memset(jumbo[i], 0xff, 9216);
	}
	for (int i = 0; i < 9; i++)
		uma_zfree(sc->sc_jumbo, jumbo[i]);
	uma_zfree(sc->sc_jumbo, NULL);
	uma_zone_reclaim(sc->sc_packets, UMA_RECLAIM_DRAIN_CPU);
	CHECK(inits == finis);
	item = uma_zalloc_arg(sc->sc_packets, xq, M_WAITOK);
	CHECK(inits > finis);
	uma_zfree(sc->sc_packets, item);
}

#define XE_SLEEPERS	4

static uma_zone_t waited_for;

static void *
sleeper(void *unused)
{
	(void)unused;
	return uma_zalloc(waited_for, M_WAITOK);
}

/* At the limit M_WAITOK sleeps until somebody frees. */
static void
waiting(void)
{
	struct env_thread thread[XE_SLEEPERS];
	void *items[64];
	int max;

	waited_for = uma_zcreate("xe waited for", 128, NULL, NULL, NULL, NULL, UMA_ALIGN_LONG, 0);
	max = uma_zone_set_max(waited_for, 8);
	CHECK(max >= 8 && max <= 64);
	for (int i = 0; i < max; i++)
		items[i] = uma_zalloc(waited_for, M_WAITOK);
	for (int i = 0; i < XE_SLEEPERS; i++)
		CHECK(env_thread_start(&thread[i], sleeper, NULL) == 0);
	while (env_zone("xe waited for").ez_sleeps < XE_SLEEPERS)
		env_yield();
	CHECK(uma_zone_get_cur(waited_for) == max);
	for (int i = 0; i < XE_SLEEPERS; i++)
		uma_zfree(waited_for, items[i]);
	for (int i = 0; i < XE_SLEEPERS; i++)
		CHECK((items[i] = env_thread_join(&thread[i])) != NULL);
	CHECK(uma_zone_get_cur(waited_for) == max && uma_zalloc(waited_for, M_NOWAIT) == NULL);
	for (int i = 0; i < max; i++)
		uma_zfree(waited_for, items[i]);
	uma_zdestroy(waited_for);
}

/* ---- received packets: allocated by the interrupt handler, freed by the driver's own thread ---- */

#define XE_RXRING	32

static struct {
	int rx_busy;			/* taken by whoever works on the ring; a handler does not wait */
	struct xe_packet *rx_ring[XE_RXRING];
	unsigned int rx_head, rx_tail;
	int rx_received, rx_taken, rx_dropped, rx_contended;
} rx;

static void
xe_intr(void *arg)
{
	struct xe_softc *sc = arg;
	struct xe_packet *xp;

	if (__atomic_exchange_n(&rx.rx_busy, 1, __ATOMIC_ACQUIRE) != 0) {
		COUNT(rx.rx_contended);
		return;
	}
	xp = uma_zalloc_arg(sc->sc_packets, sc->sc_queue[2], M_NOWAIT);
	if (xp != NULL && rx.rx_head - rx.rx_tail < XE_RXRING) {
		memset(xp->xp_data, 0x33, sizeof(xp->xp_data));
		xp->xp_len = sizeof(xp->xp_data);
		rx.rx_ring[rx.rx_head++ % XE_RXRING] = xp;
		COUNT(rx.rx_received);
	} else {
		uma_zfree(sc->sc_packets, xp);
		COUNT(rx.rx_dropped);
	}
	/* What is forbidden here is said to be so; what is not, works. */
	free(malloc(200, M_XE, M_NOWAIT | M_ZERO), M_XE);
	kmem_intr_free(kmem_intr_alloc(48, KM_NOSLEEP), 48);
	__atomic_store_n(&rx.rx_busy, 0, __ATOMIC_RELEASE);
}

static void
xe_rxeof(void *arg)
{
	struct xe_softc *sc = arg;
	int wanted = 20 + 480 * env_effort() / 100;

	while (NOW(rx.rx_taken) < wanted) {
		struct xe_packet *xp = NULL;

		if (__atomic_exchange_n(&rx.rx_busy, 1, __ATOMIC_ACQUIRE) == 0) {
			if (rx.rx_tail != rx.rx_head)
				xp = rx.rx_ring[rx.rx_tail++ % XE_RXRING];
			__atomic_store_n(&rx.rx_busy, 0, __ATOMIC_RELEASE);
		}
		if (xp == NULL) {
			env_yield();
			continue;
		}
		for (int at = 0; at < XE_MTU; at++)
			CHECK(xp->xp_data[at] == 0x33);
		CHECK(xp->xp_magic == XE_PKT_MAGIC && xp->xp_len == XE_MTU);
		uma_zfree(sc->sc_packets, xp);
		COUNT(rx.rx_taken);
	}
}

static void
receiving(struct xe_softc *sc)
{
	env_interrupted(xe_intr, xe_rxeof, sc);
	CHECK(rx.rx_received == rx.rx_taken + (int)(rx.rx_head - rx.rx_tail));
	CHECK(uma_zone_get_cur(sc->sc_packets) == (int)(rx.rx_head - rx.rx_tail));
	CHECK(sc->sc_queue[2]->xq_live == (int)(rx.rx_head - rx.rx_tail));
	while (rx.rx_tail != rx.rx_head)
		uma_zfree(sc->sc_packets, rx.rx_ring[rx.rx_tail++ % XE_RXRING]);
	CHECK(uma_zone_get_cur(sc->sc_packets) == 0);
}

/* A second zone on the keg of the first; and a zone without one. */
static char table[4][32];
static int imported;

static int
table_import(void *arg, void **store, int count, int domain, int flags)
{
	int given = 0;

	(void)domain, (void)flags;
	CHECK(arg == (void *)table);
	while (given < count && imported < 4)
		store[given++] = table[imported++];
	return given;
}

static void
table_release(void *arg, void **store, int count)
{
	CHECK(arg == (void *)table);
	for (int i = 0; i < count; i++)
		CHECK((char *)store[i] >= table[0] && (char *)store[i] <= table[3]);
	imported -= count;
}

static void
more_zones(void)
{
	uma_zone_t first = uma_zcreate("xe first", 200, NULL, NULL, NULL, NULL, UMA_ALIGN_PTR, UMA_ZONE_ZINIT);
	uma_zone_t second = uma_zsecond_create("xe second", NULL, NULL, NULL, NULL, first);
	uma_zone_t cache = uma_zcache_create("xe table", 32, NULL, NULL, NULL, NULL, table_import, table_release, table,
	    UMA_ZONE_NOBUCKET);
	void *a = uma_zalloc(first, M_WAITOK), *b = uma_zalloc(second, M_WAITOK), *c[4];

	CHECK(a != NULL && b != NULL && a != b);
	uma_zfree(second, b);
	uma_zfree(first, a);
	uma_zdestroy(second);
	uma_zdestroy(first);
	for (int i = 0; i < 4; i++)
		CHECK((c[i] = uma_zalloc(cache, M_NOWAIT)) != NULL);
	CHECK(uma_zalloc(cache, M_NOWAIT) == NULL);
	for (int i = 0; i < 4; i++)
		uma_zfree(cache, c[i]);
	uma_zdestroy(cache);
	CHECK(imported == 0);
	/* Nothing that a process has. */
	CHECK(uma_zcreate("xe contig", 64, NULL, NULL, NULL, NULL, UMA_ALIGN_PTR, UMA_ZONE_CONTIG) == NULL);
}

static void
count_types(struct malloc_type *type, void *arg)
{
	int *count = arg;

	CHECK(type != NULL);
	(*count)++;
}

static void
types(void)
{
	int before = 0, after = 0;
	char *text, *more;
	void *blocks[64];
	int got = 0;

	CHECK(malloc_desc2type("xe") == M_XE && malloc_desc2type("xe stats") == M_XESTAT);
	CHECK(malloc_desc2type("xe late") == NULL);
	malloc_type_list(count_types, &before);
	malloc_type_attach(M_XELATE);
	malloc_type_list(count_types, &after);
	CHECK(after == before + 1 && malloc_desc2type("xe late") == M_XELATE);
	free(malloc(10, M_XELATE, M_NOWAIT), M_XELATE);
	malloc_type_detach(M_XELATE);
	CHECK(malloc_desc2type("xe late") == NULL);

	/* A type with a limit is refused what goes beyond it, and what comes back serves again. */
	while (got < 64 && (blocks[got] = malloc(1024, M_XELIM, M_NOWAIT)) != NULL)
		got++;
	CHECK(got == 8);
	free(blocks[--got], M_XELIM);
	CHECK((blocks[got] = malloc(1024, M_XELIM, M_NOWAIT)) != NULL);
	got++;
	malloc_type_setlimit(M_XELIM, 0);
	CHECK((blocks[got] = malloc(1024, M_XELIM, M_NOWAIT)) != NULL);
	for (got++; got > 0; got--)
		free(blocks[got - 1], M_XELIM);

	text = malloc(24, M_TEMP, M_WAITOK);
	CHECK(malloc_usable_size(text) == malloc_size(24) && malloc_size(24) >= 24);
	strcpy(text, "keeps its contents");
	text = realloc(text, 5000, M_TEMP, M_WAITOK);
	CHECK(strcmp(text, "keeps its contents") == 0);
	more = realloc(text, (size_t)1 << 62, M_TEMP, M_NOWAIT);
	CHECK(more == NULL && strcmp(text, "keeps its contents") == 0);
	CHECK(reallocf(text, (size_t)1 << 62, M_TEMP, M_NOWAIT) == NULL);
	CHECK(mallocarray((size_t)1 << 40, (size_t)1 << 40, M_TEMP, M_NOWAIT) == NULL);
	CHECK(malloc((size_t)1 << 62, M_TEMP, M_WAITOK | M_CANFAIL) == NULL);
	CHECK(malloc_last_fail() >= 0 && malloc_last_fail() < 3600);
	free(NULL, M_TEMP);
	text = malloc(0, M_DEVBUF, M_WAITOK);
	CHECK(text != NULL);
	free(text, M_DEVBUF);
}

static void
kmem(void)
{
	size_t size = 0;
	char *copy = kmem_strdupsize("eth0", &size, KM_SLEEP), *part = kmem_strndup("ethernet", 5, KM_NOSLEEP);
	uint32_t *words = kmem_zalloc(100 * sizeof(*words), KM_SLEEP);

	CHECK(size == 5 && strcmp(copy, "eth0") == 0 && strcmp(part, "ether") == 0);
	for (int i = 0; i < 100; i++)
		CHECK(words[i] == 0);
	kmem_free(words, 100 * sizeof(*words));
	kmem_free(copy, size);
	kmem_strfree(part);
	copy = kmem_strdup("twice", KM_SLEEP);
	CHECK(strcmp(copy, "twice") == 0);
	kmem_strfree(copy);
	kmem_intr_free(kmem_intr_alloc(48, KM_NOSLEEP), 48);
}

/* An arena of bus addresses behind one that it imports from. */
static int imports, reclaims;

static int
bus_import(void *arg, vmem_size_t size, int flags, vmem_addr_t *addrp)
{
	int error = vmem_alloc(arg, size, (flags & (M_WAITOK | M_NOWAIT)) | M_BESTFIT, addrp);

	if (error == 0)
		imports++;
	return error;
}

static void
bus_release(void *arg, vmem_addr_t addr, vmem_size_t size)
{
	imports--;
	vmem_free(arg, addr, size);
}

static void
bus_reclaim(vmem_t *vm, int flags)
{
	(void)flags;
	CHECK(vm != NULL);
	reclaims++;
}

static void
arenas(void)
{
	vmem_t *root = vmem_create("bus", 0, 0x100000, 0x1000, 0, M_WAITOK);
	vmem_t *dma = vmem_create("dma", 0, 0, 0x1000, 0, M_WAITOK);
	vmem_addr_t a, b, last = 0;

	CHECK(vmem_create("odd", 0, 10, 3, 0, M_NOWAIT) == NULL);
	vmem_set_import(dma, bus_import, bus_release, root, 0x10000);
	vmem_set_reclaim(dma, bus_reclaim);
	CHECK(vmem_alloc(dma, 0x3000, M_NOWAIT | M_FIRSTFIT, &a) == 0 && imports == 1);
	CHECK(vmem_size(root, VMEM_ALLOC) == 0x10000 && vmem_size(dma, VMEM_ALLOC) == 0x3000);
	CHECK(vmem_size(dma, VMEM_FREE | VMEM_ALLOC) == 0x10000 && vmem_size(dma, VMEM_MAXFREE) == 0xd000);
	CHECK(vmem_alloc(dma, 0x200000, M_NOWAIT | M_FIRSTFIT, &b) == ENOMEM && reclaims >= 1);
	vmem_free(dma, a, 0x3000);
	CHECK(imports == 0 && vmem_size(root, VMEM_ALLOC) == 0);
	vmem_destroy(dma);

	CHECK(vmem_xalloc(root, 0x3000, 0x8000, 0x1000, 0x10000, 0x20000, 0x3ffff, M_NOWAIT | M_BESTFIT, &a) == 0);
	CHECK((a & 0x7fff) == 0x1000 && a >= 0x20000 && a + 0x2fff <= 0x3ffff && (a >> 16) == ((a + 0x2fff) >> 16));
	CHECK(vmem_roundup_size(root, 0x1001) == 0x2000);
	vmem_xfree(root, a, 0x3000);
	CHECK(vmem_add(root, 0x200000, 0x1000, M_WAITOK) == 0);
	CHECK(vmem_add(root, 0x200000, 0x1000, M_WAITOK) != 0);
	vmem_destroy(root);

	/* NetBSD's way to make one; and ids that come again as late as possible. */
	root = vmem_create("pid", 1, 99, 1, NULL, NULL, NULL, 0, VM_SLEEP, IPL_NONE);
	for (int i = 0; i < 99; i++) {
		CHECK(vmem_alloc(root, 1, VM_NOSLEEP | VM_NEXTFIT, &a) == 0 && a == last + 1);
		last = a;
		if (i % 2 == 0)
			vmem_free(root, a, 1);
	}
	CHECK(vmem_alloc(root, 1, VM_NOSLEEP | VM_NEXTFIT, &a) == 0 && a == 1);
	vmem_free(root, a, 1);
	for (a = 2; a <= 98; a += 2)
		vmem_free(root, a, 1);
	CHECK(vmem_size(root, VMEM_ALLOC) == 0);
	vmem_destroy(root);
}

int
program(void)
{
	static const uint8_t group[XE_ETHER_LEN] = { 1, 0, 0x5e, 0, 0, 1 };
	struct xe_softc *sc = xe_attach(0);

	CHECK(strcmp(sc->sc_name, "xe0") == 0);
	xe_add_mcast(sc, group);
	traffic(sc);
	receiving(sc);
	limits(sc);
	waiting();
	more_zones();
	types();
	kmem();
	arenas();
	xe_detach(sc);
	CHECK(inits == finis && ctors == dtors);
	if (failures == 0)
		printf("driver detached\n");
	return failures != 0;
}
