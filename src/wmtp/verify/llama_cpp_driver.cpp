// Runs the real llama.cpp for wmtp's verify-export: its tokenizer, its trunk, and its own driver of
// draft heads (draft-mtp), and tells all that it found. It judges nothing.
//
//     llama_cpp_driver MODEL LIBRARIES REQUEST LOGITS
//
// REQUEST holds, one after the other:
//     depths K                     how many heads may draft; 0 for the trunk alone
//     context N                    most positions of a text, new tokens included
//     text BYTES \n ...            a text to be tokenized, as so many bytes
//     prompt NEW COUNT id id ...   a text to be continued by NEW tokens
//
// On standard output, one line each; those with a + have rows of float32 logits, each of the whole
// vocabulary, in the file LOGITS, in the order of the lines:
//     model VOCABULARY WIDTH DEPTHS
//     ids TEXT id id ...                            with what stands in front of every text
//     + trunk PROMPT ROWS                             logits at the prompt's last ROWS positions
//     + round PROMPT DEPTH KNOWN id ...               DEPTH drafts made when KNOWN tokens were
//                                                     certain; logits of the last draft
//     sequence PROMPT DEPTH id ...                    the text, with up to DEPTH drafts a round; a
//                                                     short one where DEPTH is less than K
//     counts PROMPT DEPTH looked_at accepted ...      a pair for each depth
//     done
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "common.h"
#include "ggml-backend.h"
#include "llama-ext.h"
#include "llama.h"
#include "speculative.h"

namespace {

constexpr int kRows = 64;       // logits of so many positions of a prompt are told
constexpr int kFewTokens = 12;  // new ones, where a text is only there for the drafts of a depth

struct Prompt {
    int wanted = 0;
    llama_tokens ids;
};

struct Request {
    int depths = 0;
    int context = 0;
    std::vector<std::string> texts;
    std::vector<Prompt> prompts;
};

[[noreturn]] void fail(const std::string &what) { throw std::runtime_error(what); }

Request read_request(const char *path) {
    std::ifstream file(path, std::ios::binary);
    Request request;
    std::string word;
    while (file >> word) {
        if (word == "depths") {
            file >> request.depths;
        } else if (word == "context") {
            file >> request.context;
        } else if (word == "text") {
            size_t bytes = 0;
            file >> bytes;
            file.get();  // the newline
            std::string text(bytes, '\0');
            file.read(text.data(), static_cast<std::streamsize>(bytes));
            request.texts.push_back(text);
        } else if (word == "prompt") {
            Prompt prompt;
            size_t count = 0;
            file >> prompt.wanted >> count;
            prompt.ids.resize(count);
            for (auto &id : prompt.ids) file >> id;
            request.prompts.push_back(prompt);
        } else {
            fail("the request has an unknown word: " + word);
        }
        if (!file) fail("the request ends too early");
    }
    return request;
}

struct ModelDeleter {
    void operator()(llama_model *model) const { llama_model_free(model); }
};
struct ContextDeleter {
    void operator()(llama_context *context) const { llama_free(context); }
};
using Model = std::unique_ptr<llama_model, ModelDeleter>;
using Context = std::unique_ptr<llama_context, ContextDeleter>;

class Batch {
  public:
    explicit Batch(int capacity) : batch_(llama_batch_init(capacity, 0, 1)) {}
    ~Batch() { llama_batch_free(batch_); }
    Batch(const Batch &) = delete;
    Batch &operator=(const Batch &) = delete;

    void fill(const llama_tokens &ids, int first_position, size_t first_with_logits) {
        common_batch_clear(batch_);
        for (size_t i = 0; i < ids.size(); ++i) {
            common_batch_add(batch_, ids[i], first_position + static_cast<int>(i), {0},
                             i >= first_with_logits);
        }
    }
    const llama_batch &get() const { return batch_; }

  private:
    llama_batch batch_;
};

class Engine {
  public:
    Engine(const char *path, const Request &request, const char *logits_path)
        : request_(request), logits_(logits_path, std::ios::binary), batch_(request.context) {
        auto model_settings = llama_model_default_params();
        model_settings.n_gpu_layers = 0;
        model_settings.load_mtp = request.depths > 0;
        model_.reset(llama_model_load_from_file(path, model_settings));
        if (!model_) fail("llama.cpp did not load the model");
        vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));

        auto settings = llama_context_default_params();
        settings.n_ctx = settings.n_batch = settings.n_ubatch = request.context;
        settings.n_threads = settings.n_threads_batch = 1;
        // exact caches, so that differences are those of the model
        settings.type_k = settings.type_v = GGML_TYPE_F32;
        settings.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        trunk_.reset(llama_init_from_model(model_.get(), settings));
        if (!trunk_) fail("llama.cpp made no context for the trunk");
        if (request.depths > 0) {
            settings.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
            drafts_.reset(llama_init_from_model(model_.get(), settings));
            if (!drafts_) fail("llama.cpp made no context for the heads");
        }
    }

    void run() {
        std::printf("model %d %d %d\n", vocabulary_, llama_model_n_embd(model_.get()),
                    llama_model_n_layer_nextn(model_.get()));
        for (size_t i = 0; i < request_.texts.size(); ++i) tokenize(i);
        for (size_t p = 0; p < request_.prompts.size(); ++p) {
            read_prompt(p);
            for (int depth = std::min(1, request_.depths); depth <= request_.depths; ++depth) {
                continue_text(p, depth);
            }
        }
        logits_.flush();
        if (!logits_) fail("the logits could not be written");
        std::puts("done");
    }

  private:
    void tokenize(size_t index) {
        const std::string &text = request_.texts[index];
        const auto *vocab = llama_model_get_vocab(model_.get());
        llama_tokens ids(text.size() + 8);
        const int count = llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()),
                                         ids.data(), static_cast<int32_t>(ids.size()),
                                         /*add_special=*/true, /*parse_special=*/false);
        if (count < 0) fail("llama.cpp gave more tokens than there are bytes");
        ids.resize(count);
        std::printf("ids %zu", index);
        tell(ids);
    }

    void read_prompt(size_t index) {
        const auto &ids = request_.prompts[index].ids;
        const size_t rows = std::min<size_t>(ids.size(), kRows);
        forget_from(0);
        if (drafts_) llama_set_embeddings_nextn(trunk_.get(), false, false);
        batch_.fill(ids, 0, ids.size() - rows);
        decode();
        for (size_t i = ids.size() - rows; i < ids.size(); ++i) {
            keep(llama_get_logits_ith(trunk_.get(), static_cast<int32_t>(i)));
        }
        std::printf("trunk %zu %zu\n", index, rows);
    }

    // Rounds as a server makes them: draft, read the drafts, keep what the trunk agrees with.
    void continue_text(size_t index, int depth) {
        const Prompt &prompt = request_.prompts[index];
        forget_from(0);
        common_params_speculative settings;
        common_speculative *speculative = nullptr;
        if (depth > 0) {
            settings.types = {COMMON_SPECULATIVE_TYPE_DRAFT_MTP};
            settings.draft.n_max = depth;
            settings.draft.n_min = 0;
            settings.draft.p_min = 0;
            settings.draft.backend_sampling = false;
            settings.draft.ctx_tgt = trunk_.get();
            settings.draft.ctx_dft = drafts_.get();
            speculative = common_speculative_init(settings, 1);
            if (speculative == nullptr) fail("llama.cpp did not start draft-mtp");
        }
        const std::unique_ptr<common_speculative, void (*)(common_speculative *)> owner(
            speculative, common_speculative_free);

        batch_.fill(prompt.ids, 0, prompt.ids.size() - 1);
        read(speculative);
        llama_tokens known = prompt.ids;  // all certain tokens but the last
        llama_token last = best(static_cast<int32_t>(prompt.ids.size()) - 1);
        if (speculative != nullptr) common_speculative_begin(speculative, 0, known);
        std::vector<int> looked_at(depth), accepted(depth);
        const int count =
            depth < request_.depths ? std::min(kFewTokens, prompt.wanted) : prompt.wanted;
        const size_t end = prompt.ids.size() + count;
        while (known.size() + 1 < end) {
            const int wanted = std::min(depth, static_cast<int>(end - known.size()) - 2);
            const llama_tokens drafts = draft(speculative, index, known, last, depth, wanted);
            llama_tokens unread = {last};
            unread.insert(unread.end(), drafts.begin(), drafts.end());
            const int position = static_cast<int>(known.size());
            batch_.fill(unread, position, 0);
            read(speculative);
            size_t taken = 0;
            for (; taken < drafts.size(); ++taken) {
                looked_at[taken] += 1;
                if (drafts[taken] != best(static_cast<int32_t>(taken))) break;
                accepted[taken] += 1;
            }
            known.insert(known.end(), unread.begin(), unread.begin() + 1 + taken);
            last = best(static_cast<int32_t>(taken));
            if (speculative != nullptr) {
                common_speculative_accept(speculative, 0, static_cast<uint16_t>(taken));
            }
            forget_from(static_cast<int>(known.size()));
        }
        known.push_back(last);
        std::printf("sequence %zu %d", index, depth);
        tell(known);
        std::printf("counts %zu %d", index, depth);
        for (int d = 0; d < depth; ++d) std::printf(" %d %d", looked_at[d], accepted[d]);
        std::puts("");
    }

    llama_tokens draft(common_speculative *speculative, size_t index, const llama_tokens &known,
                       llama_token last, int depth, int wanted) {
        llama_tokens drafts;
        if (speculative == nullptr || wanted < 1) return drafts;
        auto &settings = common_speculative_get_draft_params(speculative, 0);
        settings.drafting = true;
        settings.n_max = wanted;
        settings.pos0 = static_cast<llama_pos>(known.size());
        settings.id_last = last;
        settings.prompt = &known;
        settings.result = &drafts;
        common_speculative_draft(speculative);
        if (static_cast<int>(drafts.size()) == depth) {
            keep(llama_get_logits_ith(drafts_.get(), -1));
            std::printf("round %zu %d %zu", index, depth, known.size() + 1);
            tell(drafts);
        }
        llama_memory_seq_rm(llama_get_memory(drafts_.get()), 0,
                            static_cast<llama_pos>(known.size()), -1);
        return drafts;
    }

    void read(common_speculative *speculative) {
        decode();
        if (speculative != nullptr && !common_speculative_process(speculative, batch_.get())) {
            fail("draft-mtp did not take in what the trunk read");
        }
    }

    void decode() {
        if (llama_decode(trunk_.get(), batch_.get()) != 0) fail("the trunk did not decode");
    }

    void forget_from(int position) {
        llama_memory_seq_rm(llama_get_memory(trunk_.get()), 0, position, -1);
        if (drafts_) llama_memory_seq_rm(llama_get_memory(drafts_.get()), 0, position, -1);
    }

    llama_token best(int32_t row) {
        const float *logits = llama_get_logits_ith(trunk_.get(), row);
        if (logits == nullptr) fail("the trunk gave no logits");
        return static_cast<llama_token>(std::max_element(logits, logits + vocabulary_) - logits);
    }

    void keep(const float *logits) {
        if (logits == nullptr) fail("llama.cpp gave no logits");
        logits_.write(reinterpret_cast<const char *>(logits),
                      static_cast<std::streamsize>(sizeof(float)) * vocabulary_);
    }

    static void tell(const llama_tokens &ids) {
        for (const auto id : ids) std::printf(" %d", id);
        std::puts("");
    }

    const Request &request_;
    std::ofstream logits_;
    Batch batch_;
    Model model_;
    Context trunk_, drafts_;
    int vocabulary_ = 0;
};

}  // namespace

int main(int count, char **arguments) {
    if (count != 5) return 2;
    try {
        const Request request = read_request(arguments[3]);
        llama_log_set(
            [](ggml_log_level level, const char *text, void *) {
                if (level >= GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT) {
                    std::fputs(text, stderr);
                }
            },
            nullptr);
        ggml_backend_load_all_from_path(arguments[2]);
        llama_backend_init();
        Engine(arguments[1], request, arguments[4]).run();
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
